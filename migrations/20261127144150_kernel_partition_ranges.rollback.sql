-- The rows of _past and _other become those of a default partition again.
DO $$
DECLARE
    parent text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['finished_jobs', 'events'] LOOP
        EXECUTE format('ALTER TABLE kernel.%1$I DETACH PARTITION kernel.%1$s_past', parent);
        EXECUTE format('ALTER TABLE kernel.%1$I DETACH PARTITION kernel.%1$s_other', parent);
        EXECUTE format('INSERT INTO kernel.%1$s_other SELECT * FROM kernel.%1$s_past', parent);
        EXECUTE format('DROP TABLE kernel.%s_past', parent);
        EXECUTE format('ALTER TABLE kernel.%1$I ATTACH PARTITION kernel.%1$s_other DEFAULT', parent);
    END LOOP;
END
$$;

COMMENT ON TABLE kernel.finished_jobs_other IS 'Finished jobs of days that have no partition.';
COMMENT ON TABLE kernel.events_other IS 'Events of days that have no partition.';

DROP FUNCTION
    kernel.partition_step, kernel.split_other, kernel.attach_rest, kernel.make_partition, kernel.partition_key,
    kernel.partitions_of, kernel.drop_partitions;

CREATE OR REPLACE FUNCTION kernel.make_partitions(p_days integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parent text;
    day date;
    child text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(1802661741, 0);
    FOREACH parent IN ARRAY ARRAY['finished_jobs', 'events'] LOOP
        FOR day IN SELECT generate_series(current_date, current_date + p_days, interval '1 day')::date LOOP
            child := parent || to_char(day, '_YYYYMMDD');
            CONTINUE WHEN to_regclass('kernel.' || child) IS NOT NULL;
            BEGIN
                -- attaching, unlike CREATE TABLE ... PARTITION OF, lets others go on writing
                EXECUTE format('CREATE TABLE kernel.%I (LIKE kernel.%I INCLUDING ALL)', child, parent);
                EXECUTE format(
                    'ALTER TABLE kernel.%I ATTACH PARTITION kernel.%I FOR VALUES FROM (%L) TO (%L)',
                    parent, child, day, day + 1
                );
                made := made + 1;
            EXCEPTION WHEN check_violation THEN
                NULL;  -- rows of that day are in the default partition, and stay there until they are pruned
            END;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;

COMMENT ON FUNCTION kernel.make_partitions(integer) IS 'Makes missing partitions of finished jobs and events, for today and p_days ahead; returns their number.';

CREATE FUNCTION kernel.drop_partitions(p_parent text, p_keep_s double precision) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    child text;
    dropped integer := 0;
    oldest timestamptz := now() - p_keep_s * interval '1 second';
BEGIN
    FOR child IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = ('kernel.' || quote_ident(p_parent))::regclass
          AND c.relname ~ '_[0-9]{8}$' AND to_date(right(c.relname, 8), 'YYYYMMDD') + 1 <= oldest
        ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE kernel.%I', child);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;

COMMENT ON FUNCTION kernel.drop_partitions(text, double precision) IS 'Drops the partitions of a table whose rows are all older than p_keep_s seconds; returns their number.';
