-- kernel: A lock for each turn key, and a notification when a turn is passed on
-- only functions change, under their signatures, so the workers of the release before go on with them

CREATE FUNCTION kernel.turn_lock(p_key text) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    -- 1 of no key
    SELECT coalesce(nullif(hashtext(p_key), 0), 1)
$$;

COMMENT ON FUNCTION kernel.turn_lock(text) IS 'Returns the number of the advisory lock of a turn key, of the class 1802661740. The number 0 is shared by all who hold such a lock.';

CREATE FUNCTION kernel.lock_turns(p_keys text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    locks integer[];
    next_lock integer;
BEGIN
    IF current_setting('kernel.all_turns_locked', true) = 'yes' THEN
        RETURN;
    END IF;
    locks := ARRAY(SELECT DISTINCT kernel.turn_lock(k.key) AS number FROM unnest(p_keys) AS k (key) ORDER BY number);
    IF cardinality(locks) > 100 THEN
        -- the lock table of the server is limited
        PERFORM pg_advisory_xact_lock(1802661740, 0), set_config('kernel.all_turns_locked', 'yes', true);
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(1802661740, 0);
    FOREACH next_lock IN ARRAY locks LOOP
        PERFORM pg_advisory_xact_lock(1802661740, next_lock);
    END LOOP;
END
$$;

COMMENT ON FUNCTION kernel.lock_turns(text[]) IS 'Locks turn keys until the transaction ends, in order. A statement that ends jobs of several keys calls it first, so that none waits for the other.';

CREATE OR REPLACE FUNCTION kernel.fetch_jobs(
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
    keys text[];
    locked text[];
    blocked uuid[];
    busy uuid[];
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
    SELECT array_agg(c.id), array_agg(DISTINCT c.turn_key) FILTER (WHERE c.turn_key IS NOT NULL) INTO picked, keys
    FROM (
        SELECT j.id, j.turn_key FROM kernel.jobs j
        WHERE j.queue = p_queue AND j.state = 'ready' AND j.rank >= p_from
        ORDER BY j.rank, j.seq LIMIT free FOR UPDATE SKIP LOCKED
    ) c;
    IF picked IS NULL THEN
        RETURN;
    END IF;
    IF keys IS NOT NULL THEN
        -- without waiting: a worker that freezes while it passes a turn delays only the jobs of that turn
        IF pg_try_advisory_xact_lock_shared(1802661740, 0) THEN
            SELECT array_agg(k.key) INTO locked
            FROM unnest(keys[:200]) AS k (key)
            WHERE pg_try_advisory_xact_lock(1802661740, kernel.turn_lock(k.key));
        END IF;
        SELECT array_agg(j.id) INTO busy FROM kernel.jobs j
        WHERE j.id = ANY(picked) AND j.turn_key <> ALL(coalesce(locked, '{}'));
        SELECT array_agg(c.id) INTO blocked
        FROM (
            SELECT j.id, j.turn_key, j.turn_limit, j.in_order, j.seq,
                row_number() OVER (PARTITION BY j.turn_key ORDER BY j.rank, j.seq) AS place
            FROM kernel.jobs j WHERE j.id = ANY(picked) AND j.turn_key = ANY(locked)
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
        END IF;
        picked := ARRAY(SELECT unnest(picked) EXCEPT (SELECT unnest(blocked) UNION ALL SELECT unnest(busy)));
        -- what the caller does not see in the rows: more jobs may be behind those that wait now, or a turn was in use
        PERFORM set_config('kernel.fetch_again', CASE
            WHEN blocked IS NOT NULL OR cardinality(keys) > 200 THEN 'now' WHEN busy IS NOT NULL THEN 'soon' ELSE ''
        END, true);
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

CREATE OR REPLACE FUNCTION kernel.pass_turn() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    passed_to text;
BEGIN
    -- whoever passes a turn holds its lock until it commits: a worker that freezes before that keeps the jobs of the
    -- turn from starting, so its transaction is ended after two seconds
    PERFORM set_config('idle_in_transaction_session_timeout', '2000', true);
    -- after a fetch that is about to let somebody wait for this very turn, in a snapshot that sees it
    PERFORM kernel.lock_turns(ARRAY[OLD.turn_key]);
    UPDATE kernel.jobs SET state = 'ready' WHERE id = (
        SELECT j.id FROM kernel.jobs j WHERE j.turn_key = OLD.turn_key AND j.state = 'waiting'
        ORDER BY j.seq LIMIT 1 FOR UPDATE SKIP LOCKED
    ) RETURNING queue INTO passed_to;
    IF passed_to IS NOT NULL THEN
        PERFORM pg_notify('kernel_jobs', 'q' || passed_to);
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION kernel.pass_turn() IS 'Makes the next waiting job of a turn key ready when one of its jobs leaves or is postponed, and notifies the workers.';
