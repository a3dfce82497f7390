-- transactional: false
-- Everything with one trace id or request id: those of the latest errors of each group.
CREATE INDEX CONCURRENTLY IF NOT EXISTS errors_traces ON kernel.errors USING gin (
    jsonb_path_query_array(samples, '$[*].keyvalue() ? (@.key == "trace_id" || @.key == "request_id").value')
);
