-- transactional: false
-- The oldest entries, for retention.
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_at ON kernel.audit (at);
