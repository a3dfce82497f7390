-- Time series of what processes count, and what each kind of process was started with.
CREATE TABLE kernel.rollouts (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    name text NOT NULL,
    version text NOT NULL,
    settings jsonb NOT NULL,
    last_seen_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE kernel.rollouts IS 'Versions and settings that processes were started with, one row for each change; see kernel.processes for who is alive.';
COMMENT ON COLUMN kernel.rollouts.id IS 'UUIDv7 of the row.';
COMMENT ON COLUMN kernel.rollouts.at IS 'When the first process started with it.';
COMMENT ON COLUMN kernel.rollouts.name IS 'The command that was started, such as run-auth-http.';
COMMENT ON COLUMN kernel.rollouts.version IS 'Version of the application.';
COMMENT ON COLUMN kernel.rollouts.settings IS 'Effective settings by key, without secrets and without what differs between processes of a machine.';
COMMENT ON COLUMN kernel.rollouts.last_seen_at IS 'When a process last ran with it, to the minute.';

CREATE INDEX rollouts_name ON kernel.rollouts (name, id);

ALTER TABLE kernel.processes ADD COLUMN rollout_id uuid;

COMMENT ON COLUMN kernel.processes.rollout_id IS 'What the process was started with; a row of kernel.rollouts.';

CREATE TABLE kernel.counters (
    process_id uuid PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    base jsonb NOT NULL,
    reported jsonb NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1);

COMMENT ON TABLE kernel.counters IS 'What each process has counted since it started. A row outlives its process, until it is in kernel.series.';
COMMENT ON COLUMN kernel.counters.process_id IS 'Id of the process in kernel.processes.';
COMMENT ON COLUMN kernel.counters.since IS 'When the row was made.';
COMMENT ON COLUMN kernel.counters.seen_at IS 'When the process last reported.';
COMMENT ON COLUMN kernel.counters.base IS 'What was in kernel.series already when the row was made: of a process that was frozen until its first row was removed.';
COMMENT ON COLUMN kernel.counters.reported IS 'Counts by name, cumulative.';

CREATE TABLE kernel.counted (
    process_id uuid PRIMARY KEY REFERENCES kernel.counters ON DELETE CASCADE,
    counts jsonb NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1);

COMMENT ON TABLE kernel.counted IS 'What of kernel.counters is in kernel.series. Apart, so that whoever adds it up and whoever reports never wait for each other.';
COMMENT ON COLUMN kernel.counted.process_id IS 'Id of the process.';
COMMENT ON COLUMN kernel.counted.counts IS 'Counts by name, cumulative.';

CREATE TABLE kernel.series (
    resolution text NOT NULL CHECK (resolution IN ('minute', 'hour')),
    at timestamptz NOT NULL,
    measured_at timestamptz NOT NULL,
    seconds double precision NOT NULL,
    counts jsonb NOT NULL,
    gauges jsonb NOT NULL,
    CONSTRAINT series_pkey PRIMARY KEY (resolution, at)
);

COMMENT ON TABLE kernel.series IS 'Counts and gauges of the whole deployment by minute (two days) and by hour (ninety days).';
COMMENT ON COLUMN kernel.series.resolution IS 'minute or hour.';
COMMENT ON COLUMN kernel.series.at IS 'Start of the minute or hour, in UTC.';
COMMENT ON COLUMN kernel.series.measured_at IS 'When the row was last added to.';
COMMENT ON COLUMN kernel.series.seconds IS 'Time that the counts cover; more than the bucket has after a gap.';
COMMENT ON COLUMN kernel.series.counts IS 'What was counted in that time, by name; absent when zero.';
COMMENT ON COLUMN kernel.series.gauges IS 'Maxima of what was measured, by name.';

CREATE FUNCTION kernel.sum_counts(a jsonb, b jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(jsonb_object_agg(key, total), '{}') FROM (
        SELECT key, sum(value::numeric) AS total
        FROM (SELECT * FROM jsonb_each_text(a) UNION ALL SELECT * FROM jsonb_each_text(b)) both_sides GROUP BY key
    ) totals
$$;

COMMENT ON FUNCTION kernel.sum_counts(jsonb, jsonb) IS 'Returns the sums of two objects of numbers, by name.';

CREATE FUNCTION kernel.max_gauges(a jsonb, b jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(jsonb_object_agg(key, most), '{}') FROM (
        SELECT key, max(value::numeric) AS most
        FROM (SELECT * FROM jsonb_each_text(a) UNION ALL SELECT * FROM jsonb_each_text(b)) both_sides GROUP BY key
    ) maxima
$$;

COMMENT ON FUNCTION kernel.max_gauges(jsonb, jsonb) IS 'Returns the maxima of two objects of numbers, by name.';
