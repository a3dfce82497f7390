-- transactional: false
-- Everything with one trace id.
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_trace ON kernel.audit (trace_id);
