-- transactional: false
DROP INDEX CONCURRENTLY IF EXISTS kernel.dead_letters_cause;
