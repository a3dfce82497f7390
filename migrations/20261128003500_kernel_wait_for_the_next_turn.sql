-- kernel: A turn is passed to the next job also while a fetch has that locked
-- only the body of a function changes, so the workers of the release before go on with it

CREATE OR REPLACE FUNCTION kernel.pass_turn() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    next_id uuid;
    passed_to text;
BEGIN
    -- whoever passes a turn holds its lock until it commits: a worker that freezes before that keeps the jobs of the
    -- turn from starting, so its transaction is ended after two seconds
    PERFORM set_config('idle_in_transaction_session_timeout', '2000', true);
    -- after a fetch that is about to let somebody wait for this very turn, in a snapshot that sees it
    PERFORM kernel.lock_turns(ARRAY[OLD.turn_key]);
    -- a fetch that began when the next job was still ready locks it, and then finds it waiting: without this lock, and
    -- not for long, so this waits for it. To pass over that job would leave the turn with nobody
    FOR attempt IN 1..50 LOOP
        SELECT j.id INTO next_id FROM kernel.jobs j
        WHERE j.turn_key = OLD.turn_key AND j.state = 'waiting' ORDER BY j.seq LIMIT 1;
        EXIT WHEN next_id IS NULL;
        UPDATE kernel.jobs SET state = 'ready' WHERE id = (
            SELECT j.id FROM kernel.jobs j WHERE j.id = next_id AND j.state = 'waiting' FOR UPDATE SKIP LOCKED
        ) RETURNING queue INTO passed_to;
        EXIT WHEN passed_to IS NOT NULL;
        PERFORM pg_sleep(0.002);
    END LOOP;
    IF passed_to IS NOT NULL THEN
        PERFORM pg_notify('kernel_jobs', 'q' || passed_to);
    END IF;
    RETURN NULL;
END
$$;
