-- Invalidation of the caches of all processes, in the transaction that changes what they hold.
CREATE FUNCTION kernel.invalidate(topic text, tags text[]) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    payload text;
BEGIN
    IF cardinality(tags) = 0 THEN
        RETURN;
    END IF;
    IF tags IS NOT NULL THEN
        tags := ARRAY(SELECT DISTINCT tag FROM unnest(tags) AS tag ORDER BY tag);
    END IF;
    payload := json_build_object('topic', topic, 'tags', tags);
    IF octet_length(payload) >= 8000 THEN
        payload := json_build_object('topic', topic, 'tags', NULL);
    END IF;
    -- reaches the processes when the transaction commits; PostgreSQL sends equal notifications of a transaction once
    PERFORM pg_notify('kernel_cache', payload);
    -- reaches the process of this session, whose next request may come sooner than the notification. INFO is sent to
    -- the client whatever client_min_messages is, and does not reach the log of the server
    RAISE INFO 'kernel_cache %', payload;
END
$$;

COMMENT ON FUNCTION kernel.invalidate(text, text[]) IS 'Invalidates cached values of a topic in all processes when the transaction commits: those with one of the tags, or all if tags are null or too many.';
