-- Who passes a turn holds the lock of all turns until it commits. A `tx` worker that freezes just before would keep
-- everybody from fetching for as long as idle transactions are allowed, a minute; so it is given two seconds.
CREATE OR REPLACE FUNCTION kernel.pass_turn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
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
