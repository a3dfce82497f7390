-- The machinery that every process shares: live processes, the queue, schedules, events, the audit trail, errors.
CREATE SCHEMA kernel;

COMMENT ON SCHEMA kernel IS 'Tables of the kernel, shared by all modules; the platform module presents them.';

CREATE FUNCTION kernel.uuid7() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    -- RFC 9562, section 5.7: 48 bits of Unix milliseconds, then random bits, with the version set
    SELECT encode(
        set_bit(set_bit(overlay(
            uuid_send(gen_random_uuid())
            PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6
        ), 52, 1), 53, 1), 'hex')::uuid
$$;

COMMENT ON FUNCTION kernel.uuid7() IS 'Returns a UUIDv7 (RFC 9562) by the clock of the database.';

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

COMMENT ON TABLE kernel.processes IS 'Live processes. Each reports itself every few seconds; a row that is no longer updated is removed.';
COMMENT ON COLUMN kernel.processes.id IS 'UUIDv7, made when the process starts.';
COMMENT ON COLUMN kernel.processes.name IS 'The command that was started, such as run-auth-http.';
COMMENT ON COLUMN kernel.processes.version IS 'Version of the application.';
COMMENT ON COLUMN kernel.processes.host IS 'Host name of the machine or container.';
COMMENT ON COLUMN kernel.processes.pid IS 'Process id on the host.';
COMMENT ON COLUMN kernel.processes.state IS 'starting, ready or stopping.';
COMMENT ON COLUMN kernel.processes.services IS 'Names of the services that run in the process.';
COMMENT ON COLUMN kernel.processes.started_at IS 'When the process started.';
COMMENT ON COLUMN kernel.processes.last_seen_at IS 'When the process last reported itself.';

-- The queue

CREATE TABLE kernel.queues (
    name text PRIMARY KEY,
    paused_at timestamptz,
    concurrency integer CHECK (concurrency > 0),
    seen_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE kernel.queues IS 'Queues that consumers work on, or that an operator paused or limited.';
COMMENT ON COLUMN kernel.queues.name IS 'Name of the queue.';
COMMENT ON COLUMN kernel.queues.paused_at IS 'When the queue was paused; null while its jobs are started.';
COMMENT ON COLUMN kernel.queues.concurrency IS 'Maximum number of jobs of the queue that run at once; null without a limit.';
COMMENT ON COLUMN kernel.queues.seen_at IS 'When a consumer last worked on the queue.';

CREATE FUNCTION kernel.job_rank(run_at timestamptz, priority integer) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    -- microseconds; a point of priority is worth ten seconds of waiting, so nothing starves
    SELECT (extract(epoch FROM run_at) * 1000000)::bigint - priority * 10000000::bigint
$$;

COMMENT ON FUNCTION kernel.job_rank(timestamptz, integer) IS 'Returns the position of a job in its queue; lower values start first.';

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

COMMENT ON TABLE kernel.jobs IS 'Unfinished jobs. Small and hot: a row leaves the table when its job is finished or dead.';
COMMENT ON COLUMN kernel.jobs.id IS 'UUIDv7, kept when the job is finished, dead or retried.';
COMMENT ON COLUMN kernel.jobs.seq IS 'Order of insertion.';
COMMENT ON COLUMN kernel.jobs.queue IS 'Name of the queue.';
COMMENT ON COLUMN kernel.jobs.task IS 'Name of the task, or of the subscriber of an event.';
COMMENT ON COLUMN kernel.jobs.payload IS 'Arguments of the task, or fields of the event.';
COMMENT ON COLUMN kernel.jobs.state IS 'scheduled (until run_at), ready, waiting (for its turn) or leased (to a worker).';
COMMENT ON COLUMN kernel.jobs.priority IS 'Higher values start first; one point equals ten seconds of waiting.';
COMMENT ON COLUMN kernel.jobs.run_at IS 'Earliest time of the next attempt.';
COMMENT ON COLUMN kernel.jobs.rank IS 'Result of job_rank(run_at, priority).';
COMMENT ON COLUMN kernel.jobs.attempt IS 'Number of attempts that have failed.';
COMMENT ON COLUMN kernel.jobs.max_attempts IS 'Number of attempts after which the job is a dead letter.';
COMMENT ON COLUMN kernel.jobs.rescues IS 'Number of times that the lease expired because the worker died or froze.';
COMMENT ON COLUMN kernel.jobs.timeout_s IS 'Seconds after which an attempt is cancelled.';
COMMENT ON COLUMN kernel.jobs.unique_key IS 'At most one unfinished job of a task has the key; null without such a limit.';
COMMENT ON COLUMN kernel.jobs.turn_key IS 'Jobs with the same key take turns; null for jobs that do not.';
COMMENT ON COLUMN kernel.jobs.turn_limit IS 'Maximum number of jobs with the same turn_key that run at once.';
COMMENT ON COLUMN kernel.jobs.in_order IS 'Whether jobs with the same turn_key run one at a time, in the order of seq.';
COMMENT ON COLUMN kernel.jobs.schedule IS 'Name of the schedule that enqueued the job.';
COMMENT ON COLUMN kernel.jobs.event_id IS 'The event that a job of a subscriber handles.';
COMMENT ON COLUMN kernel.jobs.event_version IS 'Schema version of the payload of the event.';
COMMENT ON COLUMN kernel.jobs.trace_context IS 'W3C traceparent of whoever enqueued the job.';
COMMENT ON COLUMN kernel.jobs.errors IS 'Failed attempts, an array of {attempt, at, error}.';
COMMENT ON COLUMN kernel.jobs.created_at IS 'When the job was enqueued.';
COMMENT ON COLUMN kernel.jobs.cancel_requested_at IS 'When somebody asked to cancel the running job.';
COMMENT ON COLUMN kernel.jobs.lease_token IS 'Names the lease; a worker whose lease has expired completes nothing.';
COMMENT ON COLUMN kernel.jobs.leased_until IS 'When the lease expires unless its worker renews it.';
COMMENT ON COLUMN kernel.jobs.leased_by IS 'The worker that holds the lease.';

CREATE INDEX jobs_ready ON kernel.jobs (queue, rank, seq) WHERE state = 'ready';
CREATE INDEX jobs_scheduled ON kernel.jobs (run_at) WHERE state = 'scheduled';
CREATE INDEX jobs_leased ON kernel.jobs (queue, turn_key) WHERE state = 'leased';
CREATE INDEX jobs_turns ON kernel.jobs (turn_key, state, seq) WHERE turn_key IS NOT NULL;
CREATE UNIQUE INDEX jobs_unique_key ON kernel.jobs (task, unique_key) WHERE unique_key IS NOT NULL;

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

COMMENT ON TABLE kernel.dead_letters IS 'Jobs that failed for good, until an operator retries or purges them or the retention ends.';
COMMENT ON COLUMN kernel.dead_letters.id IS 'UUIDv7, kept when the job is finished, dead or retried.';
COMMENT ON COLUMN kernel.dead_letters.queue IS 'Name of the queue.';
COMMENT ON COLUMN kernel.dead_letters.task IS 'Name of the task, or of the subscriber of an event.';
COMMENT ON COLUMN kernel.dead_letters.payload IS 'Arguments of the task, or fields of the event.';
COMMENT ON COLUMN kernel.dead_letters.reason IS 'Why the job was given up.';
COMMENT ON COLUMN kernel.dead_letters.priority IS 'Higher values start first; one point equals ten seconds of waiting.';
COMMENT ON COLUMN kernel.dead_letters.attempt IS 'Number of attempts that have failed.';
COMMENT ON COLUMN kernel.dead_letters.max_attempts IS 'Number of attempts after which the job is a dead letter.';
COMMENT ON COLUMN kernel.dead_letters.timeout_s IS 'Seconds after which an attempt is cancelled.';
COMMENT ON COLUMN kernel.dead_letters.unique_key IS 'The unique key that the job had.';
COMMENT ON COLUMN kernel.dead_letters.turn_key IS 'The turn key that the job had.';
COMMENT ON COLUMN kernel.dead_letters.turn_limit IS 'The turn limit that the job had.';
COMMENT ON COLUMN kernel.dead_letters.in_order IS 'Whether jobs with the same turn_key run one at a time, in the order of seq.';
COMMENT ON COLUMN kernel.dead_letters.schedule IS 'Name of the schedule that enqueued the job.';
COMMENT ON COLUMN kernel.dead_letters.event_id IS 'The event that a job of a subscriber handles.';
COMMENT ON COLUMN kernel.dead_letters.event_version IS 'Schema version of the payload of the event.';
COMMENT ON COLUMN kernel.dead_letters.trace_context IS 'W3C traceparent of whoever enqueued the job.';
COMMENT ON COLUMN kernel.dead_letters.errors IS 'Failed attempts, an array of {attempt, at, error}.';
COMMENT ON COLUMN kernel.dead_letters.created_at IS 'When the job was enqueued.';
COMMENT ON COLUMN kernel.dead_letters.died_at IS 'When the job was given up.';

CREATE INDEX dead_letters_died_at ON kernel.dead_letters (died_at);
CREATE INDEX dead_letters_schedule ON kernel.dead_letters (schedule, died_at) WHERE schedule IS NOT NULL;

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

COMMENT ON TABLE kernel.finished_jobs IS 'Jobs that are done or cancelled; one partition a day, dropped whole when the retention ends.';
COMMENT ON COLUMN kernel.finished_jobs.id IS 'UUIDv7, kept when the job is finished, dead or retried.';
COMMENT ON COLUMN kernel.finished_jobs.queue IS 'Name of the queue.';
COMMENT ON COLUMN kernel.finished_jobs.task IS 'Name of the task, or of the subscriber of an event.';
COMMENT ON COLUMN kernel.finished_jobs.payload IS 'Arguments of the task, or fields of the event.';
COMMENT ON COLUMN kernel.finished_jobs.outcome IS 'done or cancelled.';
COMMENT ON COLUMN kernel.finished_jobs.attempt IS 'Number of attempts that have failed.';
COMMENT ON COLUMN kernel.finished_jobs.schedule IS 'Name of the schedule that enqueued the job.';
COMMENT ON COLUMN kernel.finished_jobs.event_id IS 'The event that a job of a subscriber handles.';
COMMENT ON COLUMN kernel.finished_jobs.unique_key IS 'The unique key that the job had.';
COMMENT ON COLUMN kernel.finished_jobs.trace_context IS 'W3C traceparent of whoever enqueued the job.';
COMMENT ON COLUMN kernel.finished_jobs.errors IS 'Failed attempts, an array of {attempt, at, error}.';
COMMENT ON COLUMN kernel.finished_jobs.created_at IS 'When the job was enqueued.';
COMMENT ON COLUMN kernel.finished_jobs.finished_at IS 'When the job finished.';

CREATE INDEX finished_jobs_id ON kernel.finished_jobs (id);
CREATE INDEX finished_jobs_schedule ON kernel.finished_jobs (schedule, finished_at) WHERE schedule IS NOT NULL;
CREATE TABLE kernel.finished_jobs_other PARTITION OF kernel.finished_jobs DEFAULT;
COMMENT ON TABLE kernel.finished_jobs_other IS 'Finished jobs of days that have no partition.';

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

COMMENT ON FUNCTION kernel.fetch_jobs(text, uuid, text, double precision, integer, bigint) IS 'Leases up to p_limit ready jobs of a queue from rank p_from on, within the limits of queue and turns.';

CREATE FUNCTION kernel.pass_turn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- whoever passes a turn holds the lock of all turns until it commits: a worker that freezes before that keeps
    -- everybody from fetching, so its transaction is ended after two seconds
    PERFORM set_config('idle_in_transaction_session_timeout', '2000', true);
    -- after a fetch that is about to let somebody wait for this very turn, in a snapshot that sees it
    PERFORM pg_advisory_xact_lock(1802661740, 0);
    UPDATE kernel.jobs SET state = 'ready' WHERE id = (
        SELECT j.id FROM kernel.jobs j WHERE j.turn_key = OLD.turn_key AND j.state = 'waiting'
        ORDER BY j.seq LIMIT 1 FOR UPDATE SKIP LOCKED
    );
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION kernel.pass_turn() IS 'Makes the next waiting job of a turn key ready when one of its jobs leaves or is postponed.';

CREATE TRIGGER jobs_pass_turn_when_gone AFTER DELETE ON kernel.jobs
FOR EACH ROW WHEN (OLD.turn_key IS NOT NULL AND OLD.state <> 'waiting') EXECUTE FUNCTION kernel.pass_turn();

CREATE TRIGGER jobs_pass_turn_when_postponed AFTER UPDATE OF state ON kernel.jobs
FOR EACH ROW WHEN (
    OLD.turn_key IS NOT NULL AND NOT OLD.in_order AND OLD.state = 'leased' AND NEW.state = 'scheduled'
) EXECUTE FUNCTION kernel.pass_turn();

-- Schedules and events

CREATE TABLE kernel.schedules (
    name text PRIMARY KEY,
    spec text NOT NULL,
    misfire text NOT NULL CHECK (misfire IN ('skip', 'one', 'all')),
    next_fire_at timestamptz NOT NULL,
    last_fire_at timestamptz,
    task text NOT NULL,
    overlap text NOT NULL DEFAULT 'allow' CHECK (overlap IN ('allow', 'skip', 'wait')),
    fired_count bigint NOT NULL DEFAULT 0,
    skipped_count bigint NOT NULL DEFAULT 0,
    paused_at timestamptz,
    resumed_at timestamptz,
    seen_at timestamptz NOT NULL DEFAULT now(),
    queue text NOT NULL DEFAULT 'default',
    max_attempts integer NOT NULL DEFAULT 10,
    timeout_s real NOT NULL DEFAULT 300
);

COMMENT ON TABLE kernel.schedules IS 'Schedules that cron managers turn into jobs; locked row by row, so every tick is one job.';
COMMENT ON COLUMN kernel.schedules.name IS 'Name of the schedule.';
COMMENT ON COLUMN kernel.schedules.spec IS 'When it fires, as declared: a cron expression or an interval.';
COMMENT ON COLUMN kernel.schedules.misfire IS 'What happens to ticks that were missed: skip them, run one, or run all.';
COMMENT ON COLUMN kernel.schedules.next_fire_at IS 'The next tick.';
COMMENT ON COLUMN kernel.schedules.last_fire_at IS 'The last tick that became a job.';
COMMENT ON COLUMN kernel.schedules.task IS 'Name of the task of its jobs.';
COMMENT ON COLUMN kernel.schedules.overlap IS 'What happens while the job before is unfinished: allow, skip the tick, or wait.';
COMMENT ON COLUMN kernel.schedules.fired_count IS 'Number of ticks that became jobs.';
COMMENT ON COLUMN kernel.schedules.skipped_count IS 'Number of ticks that were skipped.';
COMMENT ON COLUMN kernel.schedules.paused_at IS 'When it was paused; null while it fires.';
COMMENT ON COLUMN kernel.schedules.resumed_at IS 'When it was last resumed; ticks before are not made up for. Null once it has fired again.';
COMMENT ON COLUMN kernel.schedules.seen_at IS 'When a cron manager last declared it; a schedule that none declares is removed.';
COMMENT ON COLUMN kernel.schedules.queue IS 'Queue of its jobs.';
COMMENT ON COLUMN kernel.schedules.max_attempts IS 'Number of attempts after which a job is a dead letter.';
COMMENT ON COLUMN kernel.schedules.timeout_s IS 'Seconds after which an attempt is cancelled.';

CREATE TABLE kernel.events (
    id uuid NOT NULL,
    type text NOT NULL,
    version integer NOT NULL,
    payload jsonb NOT NULL,
    trace_context text,
    published_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (published_at);

COMMENT ON TABLE kernel.events IS 'The log of published events; one partition a day, dropped whole when the retention ends.';
COMMENT ON COLUMN kernel.events.id IS 'UUIDv7 of the event.';
COMMENT ON COLUMN kernel.events.type IS 'Type, such as auth.actor_disabled.';
COMMENT ON COLUMN kernel.events.version IS 'Schema version of the payload.';
COMMENT ON COLUMN kernel.events.payload IS 'Fields of the event.';
COMMENT ON COLUMN kernel.events.trace_context IS 'W3C traceparent of whoever published the event.';
COMMENT ON COLUMN kernel.events.published_at IS 'When the event was published.';

CREATE INDEX events_id ON kernel.events (id);
CREATE INDEX events_type ON kernel.events (type, published_at, id);
CREATE TABLE kernel.events_other PARTITION OF kernel.events DEFAULT;
COMMENT ON TABLE kernel.events_other IS 'Events of days that have no partition.';

CREATE TABLE kernel.subscriptions (
    subscriber text PRIMARY KEY,
    event_type text NOT NULL,
    queue text NOT NULL DEFAULT 'default',
    max_attempts integer NOT NULL DEFAULT 10,
    timeout_s real NOT NULL DEFAULT 300,
    in_order boolean NOT NULL DEFAULT false,
    seen_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE kernel.subscriptions IS 'Subscribers of events; publishing inserts one job for each. Consumers register theirs when they start.';
COMMENT ON COLUMN kernel.subscriptions.subscriber IS 'Name of the subscriber, and task of its jobs.';
COMMENT ON COLUMN kernel.subscriptions.event_type IS 'Type of the events.';
COMMENT ON COLUMN kernel.subscriptions.queue IS 'Queue of its jobs.';
COMMENT ON COLUMN kernel.subscriptions.max_attempts IS 'Number of attempts after which a job is a dead letter.';
COMMENT ON COLUMN kernel.subscriptions.timeout_s IS 'Seconds after which an attempt is cancelled.';
COMMENT ON COLUMN kernel.subscriptions.in_order IS 'Whether its events are handled one at a time, in the order of publishing.';
COMMENT ON COLUMN kernel.subscriptions.seen_at IS 'When a consumer last registered it.';

CREATE INDEX subscriptions_event_type ON kernel.subscriptions (event_type);

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

COMMENT ON FUNCTION kernel.make_partitions(integer) IS 'Makes missing partitions of finished jobs and events, for today and p_days ahead; returns their number.';

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

COMMENT ON FUNCTION kernel.drop_partitions(text, double precision) IS 'Drops the partitions of a table whose rows are all older than p_keep_s seconds; returns their number.';

DO $$ BEGIN PERFORM kernel.make_partitions(7); END $$;

-- The audit trail

CREATE TABLE kernel.audit (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    action text NOT NULL,
    outcome text NOT NULL,
    actor_id uuid,
    session_id uuid,
    target text,
    details jsonb NOT NULL DEFAULT '{}',
    address text,
    user_agent text,
    request_id text,
    trace_id text,
    count integer NOT NULL DEFAULT 1,
    last_at timestamptz,
    window_at timestamptz,
    network text
);

COMMENT ON TABLE kernel.audit IS 'Who did what to whom, with which outcome. Append only; entries are kept for a year at least.';
COMMENT ON COLUMN kernel.audit.id IS 'UUIDv7 of the entry.';
COMMENT ON COLUMN kernel.audit.at IS 'When it happened; of repeated refusals, when the first happened.';
COMMENT ON COLUMN kernel.audit.action IS 'Id of the action, such as auth.disable_actor.';
COMMENT ON COLUMN kernel.audit.outcome IS 'done, or the code of the refusal.';
COMMENT ON COLUMN kernel.audit.actor_id IS 'Who did it; null when unknown, or for the operating system user.';
COMMENT ON COLUMN kernel.audit.session_id IS 'Session of the actor.';
COMMENT ON COLUMN kernel.audit.target IS 'What it was done to: an id or a name.';
COMMENT ON COLUMN kernel.audit.details IS 'Further facts, without secrets.';
COMMENT ON COLUMN kernel.audit.address IS 'Address of the client, or os:USER@HOST.';
COMMENT ON COLUMN kernel.audit.user_agent IS 'User-Agent of the client.';
COMMENT ON COLUMN kernel.audit.request_id IS 'X-Request-ID of the request.';
COMMENT ON COLUMN kernel.audit.trace_id IS 'Trace of the request.';
COMMENT ON COLUMN kernel.audit.count IS 'Number of equal refusals within the window.';
COMMENT ON COLUMN kernel.audit.last_at IS 'When the last of repeated refusals happened.';
COMMENT ON COLUMN kernel.audit.window_at IS 'Start of the window in which equal refusals are one entry; null for all other entries.';
COMMENT ON COLUMN kernel.audit.network IS 'Network of the client, for refusals; empty for what many networks are refused.';

CREATE INDEX audit_actor ON kernel.audit (actor_id, id);
CREATE INDEX audit_target ON kernel.audit (target, id);
CREATE INDEX audit_action ON kernel.audit (action, id);
CREATE UNIQUE INDEX audit_refusals ON kernel.audit
    (window_at, action, outcome, network, coalesce(actor_id, '00000000-0000-0000-0000-000000000000'))
    WHERE window_at IS NOT NULL;

CREATE FUNCTION kernel.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append only', TG_TABLE_NAME;
END
$$;

COMMENT ON FUNCTION kernel.refuse_change() IS 'Refuses the statement.';

CREATE FUNCTION kernel.refuse_change_but_count() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.window_at IS NULL OR NEW.count <= OLD.count
        OR to_jsonb(NEW) - 'count' - 'last_at' <> to_jsonb(OLD) - 'count' - 'last_at' THEN
        RAISE EXCEPTION '% is append only', TG_TABLE_NAME;
    END IF;
    RETURN NEW;
END
$$;

COMMENT ON FUNCTION kernel.refuse_change_but_count() IS 'Refuses all changes but a higher count of an entry of refusals.';

CREATE FUNCTION kernel.refuse_recent() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append only; entries younger than a year are kept', TG_TABLE_NAME;
END
$$;

COMMENT ON FUNCTION kernel.refuse_recent() IS 'Refuses to delete entries younger than a year.';

CREATE TRIGGER audit_append_only BEFORE UPDATE ON kernel.audit
FOR EACH ROW EXECUTE FUNCTION kernel.refuse_change_but_count();

CREATE TRIGGER audit_kept_for_a_year BEFORE DELETE ON kernel.audit
FOR EACH ROW WHEN (OLD.at > now() - interval '365 days') EXECUTE FUNCTION kernel.refuse_recent();

CREATE TRIGGER audit_not_emptied BEFORE TRUNCATE ON kernel.audit
FOR EACH STATEMENT EXECUTE FUNCTION kernel.refuse_change();

-- Captured errors

CREATE TABLE kernel.errors (
    id uuid PRIMARY KEY DEFAULT kernel.uuid7(),
    fingerprint text NOT NULL UNIQUE,
    kind text NOT NULL,
    type text NOT NULL,
    title text NOT NULL,
    culprit text NOT NULL,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'resolved', 'muted', 'regressed')),
    count bigint NOT NULL,
    processes text[] NOT NULL,
    first_seen_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    first_release text NOT NULL,
    last_release text NOT NULL,
    samples jsonb NOT NULL,
    muted_until timestamptz,
    notified_at timestamptz,
    notified_count bigint NOT NULL DEFAULT 0
);

COMMENT ON TABLE kernel.errors IS 'Captured errors; equal ones are one group.';
COMMENT ON COLUMN kernel.errors.id IS 'UUIDv7 of the group.';
COMMENT ON COLUMN kernel.errors.fingerprint IS 'Digest of what makes errors equal: kind, type and stack frames.';
COMMENT ON COLUMN kernel.errors.kind IS 'request, job, schedule, service or outage.';
COMMENT ON COLUMN kernel.errors.type IS 'Class of the exception, or name of the outage.';
COMMENT ON COLUMN kernel.errors.title IS 'Message of the first error of the group.';
COMMENT ON COLUMN kernel.errors.culprit IS 'Where it was raised.';
COMMENT ON COLUMN kernel.errors.state IS 'open, resolved, muted, or regressed (seen again after it was resolved).';
COMMENT ON COLUMN kernel.errors.count IS 'Number of errors in the group.';
COMMENT ON COLUMN kernel.errors.processes IS 'Names of the processes that captured it.';
COMMENT ON COLUMN kernel.errors.first_seen_at IS 'When the first one was captured.';
COMMENT ON COLUMN kernel.errors.last_seen_at IS 'When the last one was captured.';
COMMENT ON COLUMN kernel.errors.first_release IS 'Version that captured the first one.';
COMMENT ON COLUMN kernel.errors.last_release IS 'Version that captured the last one.';
COMMENT ON COLUMN kernel.errors.samples IS 'The last five errors with their context: request or job, log lines, stack; secrets redacted.';
COMMENT ON COLUMN kernel.errors.muted_until IS 'When a muted group opens again; null when it is not muted.';
COMMENT ON COLUMN kernel.errors.notified_at IS 'When somebody was last notified.';
COMMENT ON COLUMN kernel.errors.notified_count IS 'The count when somebody was last notified.';

CREATE INDEX errors_last_seen_at ON kernel.errors (last_seen_at);

CREATE TABLE kernel.watch (
    id integer PRIMARY KEY CHECK (id = 1),
    checked_at timestamptz NOT NULL
);

COMMENT ON TABLE kernel.watch IS 'One row: its lock decides which process looks for outages.';
COMMENT ON COLUMN kernel.watch.id IS 'Always 1.';
COMMENT ON COLUMN kernel.watch.checked_at IS 'When a process last looked for outages.';

INSERT INTO kernel.watch (id, checked_at) VALUES (1, '-infinity');
