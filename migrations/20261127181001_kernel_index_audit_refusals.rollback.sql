-- transactional: false
DROP INDEX CONCURRENTLY IF EXISTS kernel.audit_outcome;
