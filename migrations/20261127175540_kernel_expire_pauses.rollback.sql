-- undoes 20261127175540_kernel_expire_pauses.sql
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

DROP TRIGGER schedules_end_pause ON kernel.schedules;
DROP TRIGGER queues_end_pause ON kernel.queues;
DROP FUNCTION kernel.end_pause();
DROP FUNCTION kernel.is_paused(timestamptz, timestamptz);
-- a pause that has expired is none any more
UPDATE kernel.queues SET paused_at = NULL WHERE paused_until <= now();
UPDATE kernel.schedules SET paused_at = NULL WHERE paused_until <= now();
ALTER TABLE kernel.queues DROP COLUMN pause_reason, DROP COLUMN paused_until;
ALTER TABLE kernel.schedules DROP COLUMN pause_reason, DROP COLUMN paused_until;

COMMENT ON COLUMN kernel.queues.paused_at IS 'When the queue was paused; null while its jobs are started.';
COMMENT ON COLUMN kernel.schedules.paused_at IS 'When it was paused; null while it fires.';
