-- transactional: false
-- Unfinished jobs of a rare task; without leased ones, so that leasing a job costs nothing more.
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_task ON kernel.jobs (task, id) WHERE state <> 'leased';
