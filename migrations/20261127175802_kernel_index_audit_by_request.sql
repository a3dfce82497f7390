-- transactional: false
-- Everything with one request id.
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_request ON kernel.audit (request_id);
