DROP INDEX kernel.dead_letters_schedule;

ALTER TABLE kernel.schedules
    DROP COLUMN queue,
    DROP COLUMN max_attempts,
    DROP COLUMN timeout_s;
