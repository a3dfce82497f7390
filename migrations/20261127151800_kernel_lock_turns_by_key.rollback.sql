-- undoes 20261127151800_kernel_lock_turns_by_key.sql
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

CREATE OR REPLACE FUNCTION kernel.pass_turn() RETURNS trigger LANGUAGE plpgsql AS $$
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

DROP FUNCTION kernel.lock_turns(text[]);

DROP FUNCTION kernel.turn_lock(text);
