ALTER TABLE kernel.dead_letters DROP COLUMN cause, DROP COLUMN origin_id;
DROP FUNCTION kernel.cause_of;
