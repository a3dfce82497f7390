-- Jobs with states, turns and leases that can be told apart; dead letters; finished jobs and events by day.
CREATE FUNCTION kernel.uuid7() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    -- RFC 9562, section 5.7: 48 bits of Unix milliseconds, then random bits, with the version set
    SELECT encode(
        set_bit(set_bit(overlay(
            uuid_send(gen_random_uuid())
            PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6
        ), 52, 1), 53, 1), 'hex')::uuid
$$;

CREATE FUNCTION kernel.job_rank(run_at timestamptz, priority integer) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    -- microseconds; a point of priority is worth ten seconds of waiting, so nothing starves
    SELECT (extract(epoch FROM run_at) * 1000000)::bigint - priority * 10000000::bigint
$$;

CREATE TABLE kernel.queues (
    name text PRIMARY KEY,
    paused_at timestamptz,
    concurrency integer CHECK (concurrency > 0)
);

ALTER TABLE kernel.jobs RENAME TO former_jobs;
DROP INDEX kernel.jobs_unique_key;
DROP INDEX kernel.jobs_due;

CREATE TABLE kernel.jobs (
    id uuid NOT NULL,
    seq bigint GENERATED ALWAYS AS IDENTITY,
    queue text NOT NULL,
    task text NOT NULL,
    payload jsonb,
    state text NOT NULL DEFAULT 'ready' CHECK (state IN ('scheduled', 'ready', 'waiting', 'leased')),
    priority integer NOT NULL DEFAULT 0,
    run_at timestamptz NOT NULL DEFAULT now(),
    rank bigint NOT NULL,
    attempt integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL,
    rescues integer NOT NULL DEFAULT 0,
    timeout_s real NOT NULL,
    unique_key text,
    turn_key text,
    turn_limit integer NOT NULL DEFAULT 1,
    in_order boolean NOT NULL DEFAULT false,
    schedule text,
    event_id uuid,
    event_version integer,
    trace_context text,
    errors jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    cancel_requested_at timestamptz,
    lease_token uuid,
    leased_until timestamptz,
    leased_by text,
    CONSTRAINT jobs_id PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.2);

CREATE INDEX jobs_ready ON kernel.jobs (queue, rank, seq) WHERE state = 'ready';
CREATE INDEX jobs_scheduled ON kernel.jobs (run_at) WHERE state = 'scheduled';
CREATE INDEX jobs_leased ON kernel.jobs (queue, turn_key) WHERE state = 'leased';
CREATE INDEX jobs_turns ON kernel.jobs (turn_key, state, seq) WHERE turn_key IS NOT NULL;
CREATE UNIQUE INDEX jobs_unique_key ON kernel.jobs (task, unique_key) WHERE unique_key IS NOT NULL;

INSERT INTO kernel.jobs
    (id, queue, task, payload, state, run_at, rank, attempt, max_attempts, timeout_s, unique_key, trace_context,
     created_at)
SELECT id, queue, task, payload, CASE WHEN run_at <= now() THEN 'ready' ELSE 'scheduled' END, run_at,
    kernel.job_rank(run_at, 0), attempt, max_attempts, 300, unique_key, trace_context, created_at
FROM kernel.former_jobs;

DROP TABLE kernel.former_jobs;

CREATE TABLE kernel.dead_letters (
    id uuid PRIMARY KEY,
    queue text NOT NULL,
    task text NOT NULL,
    payload jsonb,
    reason text NOT NULL,
    priority integer NOT NULL DEFAULT 0,
    attempt integer NOT NULL,
    max_attempts integer NOT NULL,
    timeout_s real NOT NULL,
    unique_key text,
    turn_key text,
    turn_limit integer NOT NULL DEFAULT 1,
    in_order boolean NOT NULL DEFAULT false,
    schedule text,
    event_id uuid,
    event_version integer,
    trace_context text,
    errors jsonb,
    created_at timestamptz NOT NULL,
    died_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX dead_letters_died_at ON kernel.dead_letters (died_at);

ALTER TABLE kernel.finished_jobs RENAME TO former_finished_jobs;
ALTER INDEX kernel.finished_jobs_finished_at RENAME TO former_finished_jobs_finished_at;

CREATE TABLE kernel.finished_jobs (
    id uuid NOT NULL,
    queue text NOT NULL,
    task text NOT NULL,
    payload jsonb,
    outcome text NOT NULL CHECK (outcome IN ('done', 'cancelled')),
    attempt integer NOT NULL,
    schedule text,
    event_id uuid,
    unique_key text,
    trace_context text,
    errors jsonb,
    created_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (finished_at);

CREATE INDEX finished_jobs_id ON kernel.finished_jobs (id);
CREATE INDEX finished_jobs_schedule ON kernel.finished_jobs (schedule, finished_at) WHERE schedule IS NOT NULL;
CREATE TABLE kernel.finished_jobs_other PARTITION OF kernel.finished_jobs DEFAULT;

INSERT INTO kernel.dead_letters
    (id, queue, task, payload, reason, attempt, max_attempts, timeout_s, created_at, died_at)
SELECT id, queue, task, payload, coalesce(error, 'unknown'), attempt, attempt, 300, created_at, finished_at
FROM kernel.former_finished_jobs WHERE outcome = 'dead';

INSERT INTO kernel.finished_jobs (id, queue, task, payload, outcome, attempt, unique_key, created_at, finished_at)
SELECT id, queue, task, payload, outcome, attempt, unique_key, created_at, finished_at
FROM kernel.former_finished_jobs WHERE outcome = 'done';

DROP TABLE kernel.former_finished_jobs;

ALTER TABLE kernel.events RENAME TO former_events;
ALTER INDEX kernel.events_type RENAME TO former_events_type;

CREATE TABLE kernel.events (
    id uuid NOT NULL,
    type text NOT NULL,
    version integer NOT NULL,
    payload jsonb NOT NULL,
    trace_context text,
    published_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (published_at);

CREATE INDEX events_id ON kernel.events (id);
CREATE INDEX events_type ON kernel.events (type, published_at, id);
CREATE TABLE kernel.events_other PARTITION OF kernel.events DEFAULT;

INSERT INTO kernel.events (id, type, version, payload, trace_context, published_at)
SELECT id, type, 1, payload, trace_context, published_at FROM kernel.former_events;

DROP TABLE kernel.former_events;

ALTER TABLE kernel.subscriptions
    ADD COLUMN queue text NOT NULL DEFAULT 'default',
    ADD COLUMN max_attempts integer NOT NULL DEFAULT 10,
    ADD COLUMN timeout_s real NOT NULL DEFAULT 300,
    ADD COLUMN in_order boolean NOT NULL DEFAULT false,
    ADD COLUMN seen_at timestamptz NOT NULL DEFAULT now();

ALTER TABLE kernel.schedules
    ADD COLUMN task text,
    ADD COLUMN overlap text NOT NULL DEFAULT 'allow' CHECK (overlap IN ('allow', 'skip', 'wait')),
    ADD COLUMN fired_count bigint NOT NULL DEFAULT 0,
    ADD COLUMN skipped_count bigint NOT NULL DEFAULT 0,
    ADD COLUMN paused_at timestamptz,
    ADD COLUMN resumed_at timestamptz,
    ADD COLUMN seen_at timestamptz NOT NULL DEFAULT now();

UPDATE kernel.schedules SET task = name;

ALTER TABLE kernel.schedules ALTER COLUMN task SET NOT NULL;

CREATE FUNCTION kernel.fetch_jobs(
    p_queue text, p_token uuid, p_worker text, p_lease_s double precision, p_limit integer, p_from bigint
) RETURNS TABLE (
    id uuid, task text, payload text, attempt integer, max_attempts integer, timeout_s real, schedule text,
    event_id uuid, event_version integer, trace_context text, created_at timestamptz, rank bigint, turn_key text
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    found_queue kernel.queues;
    free integer := p_limit;
    picked uuid[];
    with_turns uuid[];
    blocked uuid[];
BEGIN
    SELECT * INTO found_queue FROM kernel.queues q WHERE q.name = p_queue;
    IF found_queue.paused_at IS NOT NULL THEN
        RETURN;
    END IF;
    IF found_queue.concurrency IS NOT NULL THEN
        -- one after the other: the next statement sees what the one before has leased
        PERFORM pg_advisory_xact_lock(1802661739, hashtext(p_queue));
        SELECT least(free, found_queue.concurrency - count(*)) INTO free
        FROM kernel.jobs j WHERE j.queue = p_queue AND j.state = 'leased';
        IF free <= 0 THEN
            RETURN;
        END IF;
    END IF;
    SELECT array_agg(c.id), array_agg(c.id) FILTER (WHERE c.turn_key IS NOT NULL) INTO picked, with_turns
    FROM (
        SELECT j.id, j.turn_key FROM kernel.jobs j
        WHERE j.queue = p_queue AND j.state = 'ready' AND j.rank >= p_from
        ORDER BY j.rank, j.seq LIMIT free FOR UPDATE SKIP LOCKED
    ) c;
    IF picked IS NULL THEN
        RETURN;
    END IF;
    IF with_turns IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(1802661740, 0);
        SELECT array_agg(c.id) INTO blocked
        FROM (
            SELECT j.id, j.turn_key, j.turn_limit, j.in_order, j.seq,
                row_number() OVER (PARTITION BY j.turn_key ORDER BY j.rank, j.seq) AS place
            FROM kernel.jobs j WHERE j.id = ANY(with_turns)
        ) c
        WHERE CASE WHEN c.in_order THEN
            EXISTS (SELECT FROM kernel.jobs o WHERE o.turn_key = c.turn_key AND o.state = 'leased')
            OR EXISTS (
                SELECT FROM kernel.jobs o
                WHERE o.turn_key = c.turn_key AND o.state IN ('ready', 'waiting') AND o.seq < c.seq
            )
            OR EXISTS (
                SELECT FROM kernel.jobs o
                WHERE o.turn_key = c.turn_key AND o.state = 'scheduled' AND o.seq < c.seq AND o.attempt + o.rescues > 0
            )
        ELSE
            c.place + (SELECT count(*) FROM kernel.jobs o WHERE o.turn_key = c.turn_key AND o.state = 'leased')
                > c.turn_limit
        END;
        IF blocked IS NOT NULL THEN
            UPDATE kernel.jobs j SET state = 'waiting' WHERE j.id = ANY(blocked);
            picked := ARRAY(SELECT unnest(picked) EXCEPT SELECT unnest(blocked));
        END IF;
    END IF;
    RETURN QUERY
        UPDATE kernel.jobs j
        SET state = 'leased', lease_token = p_token, leased_by = p_worker,
            leased_until = now() + p_lease_s * interval '1 second'
        WHERE j.id = ANY(picked)
        RETURNING j.id, j.task, j.payload::text, j.attempt, j.max_attempts, j.timeout_s, j.schedule, j.event_id,
            j.event_version, j.trace_context, j.created_at, j.rank, j.turn_key;
END
$$;

CREATE FUNCTION kernel.pass_turn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- after a fetch that is about to let somebody wait for this very turn, in a snapshot that sees it
    PERFORM pg_advisory_xact_lock(1802661740, 0);
    UPDATE kernel.jobs SET state = 'ready' WHERE id = (
        SELECT j.id FROM kernel.jobs j WHERE j.turn_key = OLD.turn_key AND j.state = 'waiting'
        ORDER BY j.seq LIMIT 1 FOR UPDATE SKIP LOCKED
    );
    RETURN NULL;
END
$$;

CREATE TRIGGER jobs_pass_turn_when_gone AFTER DELETE ON kernel.jobs
FOR EACH ROW WHEN (OLD.turn_key IS NOT NULL AND OLD.state <> 'waiting') EXECUTE FUNCTION kernel.pass_turn();

CREATE TRIGGER jobs_pass_turn_when_postponed AFTER UPDATE OF state ON kernel.jobs
FOR EACH ROW WHEN (
    OLD.turn_key IS NOT NULL AND NOT OLD.in_order AND OLD.state = 'leased' AND NEW.state = 'scheduled'
) EXECUTE FUNCTION kernel.pass_turn();

CREATE FUNCTION kernel.make_partitions(p_days integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    day date;
    child text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(1802661741, 0);
    FOREACH parent IN ARRAY ARRAY['finished_jobs', 'events'] LOOP
        FOR day IN SELECT generate_series(current_date, current_date + p_days, interval '1 day')::date LOOP
            child := parent || to_char(day, '_YYYYMMDD');
            CONTINUE WHEN to_regclass('kernel.' || child) IS NOT NULL;
            BEGIN
                -- attaching, unlike CREATE TABLE ... PARTITION OF, lets others go on writing
                EXECUTE format('CREATE TABLE kernel.%I (LIKE kernel.%I INCLUDING ALL)', child, parent);
                EXECUTE format(
                    'ALTER TABLE kernel.%I ATTACH PARTITION kernel.%I FOR VALUES FROM (%L) TO (%L)',
                    parent, child, day, day + 1
                );
                made := made + 1;
            EXCEPTION WHEN check_violation THEN
                NULL;  -- rows of that day are in the default partition, and stay there until they are pruned
            END;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;

CREATE FUNCTION kernel.drop_partitions(p_parent text, p_keep_s double precision) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    child text;
    dropped integer := 0;
    oldest timestamptz := now() - p_keep_s * interval '1 second';
BEGIN
    FOR child IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = ('kernel.' || quote_ident(p_parent))::regclass
          AND c.relname ~ '_[0-9]{8}$' AND to_date(right(c.relname, 8), 'YYYYMMDD') + 1 <= oldest
        ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE kernel.%I', child);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;

DO $$ BEGIN PERFORM kernel.make_partitions(7); END $$;

-- what is older than a year may be pruned; nothing else of the audit trail ever changes
CREATE FUNCTION kernel.refuse_recent() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append only; entries younger than a year are kept', TG_TABLE_NAME;
END
$$;

DROP TRIGGER audit_append_only ON kernel.audit;

CREATE TRIGGER audit_append_only BEFORE UPDATE OR TRUNCATE ON kernel.audit
FOR EACH STATEMENT EXECUTE FUNCTION kernel.refuse_change();

CREATE TRIGGER audit_kept_for_a_year BEFORE DELETE ON kernel.audit
FOR EACH ROW WHEN (OLD.at > now() - interval '365 days') EXECUTE FUNCTION kernel.refuse_recent();
