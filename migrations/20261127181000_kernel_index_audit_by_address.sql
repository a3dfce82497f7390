-- transactional: false
-- Audit entries of an address.
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_address ON kernel.audit (address, id);
