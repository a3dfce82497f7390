-- transactional: false
DROP INDEX CONCURRENTLY IF EXISTS kernel.errors_traces;
