-- transactional: false
-- Dead letters of a cause.
CREATE INDEX CONCURRENTLY IF NOT EXISTS dead_letters_cause
ON kernel.dead_letters (task, coalesce(cause, kernel.cause_of(reason)), id);
