-- Goes back to the tables of before, with the jobs that are still to be done.
DROP TRIGGER audit_append_only ON kernel.audit;
DROP TRIGGER audit_kept_for_a_year ON kernel.audit;
DROP FUNCTION kernel.refuse_recent;

CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON kernel.audit
FOR EACH STATEMENT EXECUTE FUNCTION kernel.refuse_change();

DROP FUNCTION kernel.drop_partitions;
DROP FUNCTION kernel.make_partitions;
DROP FUNCTION kernel.fetch_jobs;

ALTER TABLE kernel.schedules
    DROP COLUMN task,
    DROP COLUMN overlap,
    DROP COLUMN fired_count,
    DROP COLUMN skipped_count,
    DROP COLUMN paused_at,
    DROP COLUMN resumed_at,
    DROP COLUMN seen_at;

ALTER TABLE kernel.subscriptions
    DROP COLUMN queue,
    DROP COLUMN max_attempts,
    DROP COLUMN timeout_s,
    DROP COLUMN in_order,
    DROP COLUMN seen_at;

ALTER TABLE kernel.events RENAME TO former_events;

CREATE TABLE kernel.events (
    id uuid PRIMARY KEY,
    type text NOT NULL,
    payload jsonb NOT NULL,
    trace_context text,
    published_at timestamptz NOT NULL DEFAULT now()
);

INSERT INTO kernel.events (id, type, payload, trace_context, published_at)
SELECT id, type, payload, trace_context, published_at FROM kernel.former_events;

DROP TABLE kernel.former_events;

CREATE INDEX events_type ON kernel.events (type, id);

ALTER TABLE kernel.jobs RENAME TO former_jobs;
ALTER TABLE kernel.finished_jobs RENAME TO former_finished_jobs;

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

INSERT INTO kernel.jobs
    (id, queue, task, payload, trace_context, attempt, max_attempts, run_at, created_at)
SELECT id, queue, task, coalesce(payload, '{}'), trace_context, attempt, max_attempts, run_at, created_at
FROM kernel.former_jobs;

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

INSERT INTO kernel.finished_jobs (id, queue, task, payload, unique_key, outcome, attempt, created_at, finished_at)
SELECT id, queue, task, coalesce(payload, '{}'), unique_key, 'done', attempt, created_at, finished_at
FROM kernel.former_finished_jobs WHERE outcome = 'done';

INSERT INTO kernel.finished_jobs
    (id, queue, task, payload, unique_key, outcome, error, attempt, created_at, finished_at)
SELECT id, queue, task, coalesce(payload, '{}'), unique_key, 'dead', reason, attempt, created_at, died_at
FROM kernel.dead_letters ON CONFLICT DO NOTHING;

DROP TABLE kernel.former_jobs;
DROP TABLE kernel.former_finished_jobs;
DROP TABLE kernel.dead_letters;
DROP TABLE kernel.queues;
DROP FUNCTION kernel.pass_turn;
DROP FUNCTION kernel.job_rank;
DROP FUNCTION kernel.uuid7;

CREATE UNIQUE INDEX jobs_unique_key ON kernel.jobs (unique_key);
CREATE INDEX jobs_due ON kernel.jobs (queue, run_at);
CREATE INDEX finished_jobs_finished_at ON kernel.finished_jobs (finished_at);
