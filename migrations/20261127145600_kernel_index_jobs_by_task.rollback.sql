-- transactional: false
DROP INDEX CONCURRENTLY IF EXISTS kernel.jobs_task;
