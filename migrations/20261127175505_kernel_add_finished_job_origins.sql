-- What is needed to run a finished job again.
ALTER TABLE kernel.finished_jobs
    ADD COLUMN event_version integer, ADD COLUMN turn_key text, ADD COLUMN origin_id uuid;

COMMENT ON COLUMN kernel.finished_jobs.event_version IS 'Schema version of the payload of the event.';
COMMENT ON COLUMN kernel.finished_jobs.turn_key IS 'The turn key that the job had.';
COMMENT ON COLUMN kernel.finished_jobs.origin_id IS 'The ended job that an operator ran again as this one.';
