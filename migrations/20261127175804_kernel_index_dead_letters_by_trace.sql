-- transactional: false
-- Everything with one trace id.
CREATE INDEX CONCURRENTLY IF NOT EXISTS dead_letters_trace ON kernel.dead_letters (split_part(trace_context, '-', 2))
    WHERE trace_context IS NOT NULL;
