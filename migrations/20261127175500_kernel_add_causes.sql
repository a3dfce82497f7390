-- Why jobs died, so that dead letters can be grouped. Of letters of the release before, the text decides.
CREATE FUNCTION kernel.cause_of(p_reason text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    -- quoted texts, and words with a digit, differ from job to job
    SELECT md5(regexp_replace(left(p_reason, 300), $r$'[^']*'|"[^"]*"|\m\w*\d\w*\M$r$, '#', 'g'))
$$;

COMMENT ON FUNCTION kernel.cause_of(text) IS 'Returns the cause of a dead letter without an exception: equal for reasons that differ in quoted texts, numbers and ids.';

ALTER TABLE kernel.dead_letters ADD COLUMN cause text, ADD COLUMN origin_id uuid;

COMMENT ON COLUMN kernel.dead_letters.cause IS 'Fingerprint of the captured error that it died of, or kernel.cause_of(reason); null in rows of the release before.';
COMMENT ON COLUMN kernel.dead_letters.origin_id IS 'The ended job that an operator ran again as this one.';
