-- The machinery that every process shares: who is alive, jobs, schedules.
CREATE SCHEMA kernel;

CREATE TABLE kernel.processes (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    version text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    state text NOT NULL CHECK (state IN ('starting', 'ready', 'stopping')),
    services text[] NOT NULL,
    started_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL
);

CREATE TABLE kernel.jobs (
    id uuid PRIMARY KEY,
    queue text NOT NULL DEFAULT 'default',
    task text NOT NULL,
    payload jsonb NOT NULL,
    unique_key text,
    trace_context text,
    attempt integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL,
    run_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    lease_token uuid,
    leased_until timestamptz
);

CREATE UNIQUE INDEX jobs_unique_key ON kernel.jobs (unique_key);
CREATE INDEX jobs_due ON kernel.jobs (queue, run_at);

CREATE TABLE kernel.finished_jobs (
    id uuid PRIMARY KEY,
    queue text NOT NULL,
    task text NOT NULL,
    payload jsonb NOT NULL,
    unique_key text,
    outcome text NOT NULL CHECK (outcome IN ('done', 'dead')),
    error text,
    attempt integer NOT NULL,
    created_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX finished_jobs_finished_at ON kernel.finished_jobs (finished_at);

CREATE TABLE kernel.schedules (
    name text PRIMARY KEY,
    spec text NOT NULL,
    misfire text NOT NULL CHECK (misfire IN ('skip', 'one', 'all')),
    next_fire_at timestamptz NOT NULL,
    last_fire_at timestamptz
);
