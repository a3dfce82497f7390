-- transactional: false
-- Errors of a rare kind.
CREATE INDEX CONCURRENTLY IF NOT EXISTS errors_kind ON kernel.errors (kind, id);
