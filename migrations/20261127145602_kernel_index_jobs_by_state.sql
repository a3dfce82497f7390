-- transactional: false
-- Jobs that wait, among many that are ready, and the other way round.
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_parked ON kernel.jobs (state, id) WHERE state IN ('scheduled', 'waiting');
