-- What a job of a schedule is made of, so that operators can trigger one; and the last dead letter of a schedule.
ALTER TABLE kernel.schedules
    ADD COLUMN queue text NOT NULL DEFAULT 'default',
    ADD COLUMN max_attempts integer NOT NULL DEFAULT 10,
    ADD COLUMN timeout_s real NOT NULL DEFAULT 300;

CREATE INDEX dead_letters_schedule ON kernel.dead_letters (schedule, died_at) WHERE schedule IS NOT NULL;
