-- transactional: false
-- Audit entries of what was refused.
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_outcome ON kernel.audit (outcome, id) WHERE outcome <> 'done';
