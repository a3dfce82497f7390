-- Captured errors: resolved until the next release, regressions, counts per hour.
ALTER TABLE kernel.errors
    ADD COLUMN resolved_releases text[],
    ADD COLUMN regressed_at timestamptz,
    ADD COLUMN regressed_release text,
    ADD COLUMN hourly bigint[],
    ADD COLUMN hourly_at timestamptz;

COMMENT ON COLUMN kernel.errors.resolved_releases IS 'Releases of the moment when it was resolved until the next release: errors of these and of older ones do not reopen it. Null when any error does.';
COMMENT ON COLUMN kernel.errors.regressed_at IS 'When it was last seen again after it was resolved.';
COMMENT ON COLUMN kernel.errors.regressed_release IS 'Version that captured it then.';
COMMENT ON COLUMN kernel.errors.hourly IS 'Counts of 24 hours, oldest first; the last one is that of the hour of hourly_at.';
COMMENT ON COLUMN kernel.errors.hourly_at IS 'When the counts per hour were last changed.';

CREATE FUNCTION kernel.hourly(p_counts bigint[], p_at timestamptz, p_added bigint) RETURNS bigint[] LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT counts[1:23] || (counts[24] + p_added)
    FROM (
        SELECT least(24, greatest(0,
            floor(extract(epoch FROM now()) / 3600) - floor(extract(epoch FROM coalesce(p_at, now())) / 3600)
        ))::integer AS passed
    ) hours, LATERAL (
        SELECT (coalesce(p_counts, array_fill(0::bigint, ARRAY[24])))[passed + 1:24]
            || array_fill(0::bigint, ARRAY[passed]) AS counts
    ) moved
$$;

COMMENT ON FUNCTION kernel.hourly(bigint[], timestamptz, bigint) IS 'Counts per hour of the 24 hours that end with the current one, from those of an earlier time and what is added now.';
