-- Jobs that were run again.
ALTER TABLE kernel.jobs ADD COLUMN origin_id uuid;

COMMENT ON COLUMN kernel.jobs.origin_id IS 'The ended job that an operator ran again as this one.';
