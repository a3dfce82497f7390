-- transactional: false
-- Errors of a rare state.
CREATE INDEX CONCURRENTLY IF NOT EXISTS errors_state ON kernel.errors (state, id);
