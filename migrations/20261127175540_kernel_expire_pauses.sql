-- kernel: Pauses of queues and schedules with a reason and an expiry
-- the workers of the release before fetch with the same function, so they respect pauses and their expiry

ALTER TABLE kernel.queues ADD COLUMN paused_until timestamptz, ADD COLUMN pause_reason text;
ALTER TABLE kernel.schedules ADD COLUMN paused_until timestamptz, ADD COLUMN pause_reason text;

COMMENT ON COLUMN kernel.queues.paused_at IS 'When the queue was paused; null while its jobs are started. A pause that has expired may remain.';
COMMENT ON COLUMN kernel.queues.paused_until IS 'When the pause expires; null for a pause until somebody resumes the queue.';
COMMENT ON COLUMN kernel.queues.pause_reason IS 'Why the queue was paused, in the words of the operator.';
COMMENT ON COLUMN kernel.schedules.paused_at IS 'When it was paused; null while it fires. A pause that has expired remains until the next tick.';
COMMENT ON COLUMN kernel.schedules.paused_until IS 'When the pause expires; null for a pause until somebody resumes the schedule.';
COMMENT ON COLUMN kernel.schedules.pause_reason IS 'Why it was paused, in the words of the operator.';

CREATE FUNCTION kernel.is_paused(p_at timestamptz, p_until timestamptz) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT p_at IS NOT NULL AND coalesce(p_until > now(), true)
$$;

COMMENT ON FUNCTION kernel.is_paused(timestamptz, timestamptz) IS 'Returns whether a pause since p_at, which expires at p_until, is in effect.';

CREATE FUNCTION kernel.end_pause() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.paused_at := CASE WHEN NEW.paused_at IS NOT NULL THEN now() END;
    NEW.paused_until := NULL;
    NEW.pause_reason := NULL;
    RETURN NEW;
END
$$;

COMMENT ON FUNCTION kernel.end_pause() IS 'Removes the expiry and the reason of a pause that has ended. The release before changes paused_at alone: without this, its next pause would have expired already.';

CREATE TRIGGER queues_end_pause BEFORE UPDATE OF paused_at ON kernel.queues
FOR EACH ROW WHEN (NEW.paused_at IS NULL OR NEW.paused_until <= now()) EXECUTE FUNCTION kernel.end_pause();

CREATE TRIGGER schedules_end_pause BEFORE UPDATE OF paused_at ON kernel.schedules
FOR EACH ROW WHEN (NEW.paused_at IS NULL OR NEW.paused_until <= now()) EXECUTE FUNCTION kernel.end_pause();

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
    IF found_queue.paused_at IS NOT NULL AND coalesce(found_queue.paused_until > now(), true) THEN
        -- seconds until the pause ends, when the caller fetches again
        PERFORM set_config(
            'kernel.fetch_again', coalesce(extract(epoch FROM found_queue.paused_until - now())::text, ''), true
        );
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
