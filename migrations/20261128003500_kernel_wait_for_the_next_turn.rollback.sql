-- undoes 20261128003500_kernel_wait_for_the_next_turn.sql

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
