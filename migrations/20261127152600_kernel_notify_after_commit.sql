-- Notifications that the client sends after the commit, because PostgreSQL commits transactions that notify one by one.
CREATE FUNCTION kernel.notify_after_commit(p_channel text, p_payload text) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- INFO is sent to the client whatever client_min_messages is, and does not reach the log of the server
    RAISE INFO 'kernel_notify % %', p_channel, p_payload;
END
$$;

COMMENT ON FUNCTION kernel.notify_after_commit(text, text) IS 'Asks the client of this session to notify a channel when it has committed.';
