-- transactional: false
-- Unfinished jobs of a rare queue.
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_queue ON kernel.jobs (queue, id) WHERE state <> 'leased';
