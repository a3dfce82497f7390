-- Everything with one trace id. The indexes are made for the tables alone; partition_step builds them for one partition
-- after the other.

-- squawk-ignore require-concurrent-index-creation
CREATE INDEX finished_jobs_trace ON ONLY kernel.finished_jobs (split_part(trace_context, '-', 2)) WHERE trace_context IS NOT NULL;
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX events_trace ON ONLY kernel.events (split_part(trace_context, '-', 2)) WHERE trace_context IS NOT NULL;

-- where there are no rows yet, at once
DO $$
DECLARE
    parent text;
    step text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['finished_jobs', 'events'] LOOP
        LOOP
            step := kernel.index_step(parent);
            EXIT WHEN step IS NULL OR step LIKE '% CONCURRENTLY %';
            EXECUTE step;
        END LOOP;
    END LOOP;
END
$$;
