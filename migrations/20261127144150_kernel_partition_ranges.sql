-- Partitions that are detached without blocking readers. PostgreSQL refuses DETACH PARTITION ... CONCURRENTLY beside a
-- default partition, so what belongs to no day has two ranges: _past up to the oldest day, _other after the newest one.

CREATE FUNCTION kernel.partitions_of(p_parent text)
RETURNS TABLE (name text, lower_at timestamptz, upper_at timestamptz, is_pending boolean) LANGUAGE sql STABLE AS $$
    SELECT c.relname,
        CASE b.bounds[1] WHEN 'MINVALUE' THEN '-infinity' ELSE b.bounds[1] END::timestamptz,
        CASE b.bounds[2] WHEN 'MAXVALUE' THEN 'infinity' ELSE b.bounds[2] END::timestamptz,
        i.inhdetachpending
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid,
        regexp_match(
            pg_get_expr(c.relpartbound, c.oid), $r$FROM \('?([^')]+)'?\) TO \('?([^')]+)'?\)$r$
        ) AS b (bounds)
    WHERE i.inhparent = ('kernel.' || quote_ident(p_parent))::regclass AND b.bounds IS NOT NULL
    ORDER BY 2
$$;

COMMENT ON FUNCTION kernel.partitions_of(text) IS 'Returns the partitions of a table with their bounds, oldest first.';

CREATE FUNCTION kernel.partition_key(p_parent text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT a.attname::text FROM pg_partitioned_table p
    JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
    WHERE p.partrelid = ('kernel.' || quote_ident(p_parent))::regclass
$$;

COMMENT ON FUNCTION kernel.partition_key(text) IS 'Returns the column by which a table is partitioned.';

CREATE FUNCTION kernel.make_partition(p_parent text, p_from timestamptz, p_to timestamptz) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    child text := p_parent || to_char(p_from AT TIME ZONE 'UTC', '_YYYYMMDD');
    key text := kernel.partition_key(p_parent);
BEGIN
    EXECUTE format('CREATE TABLE kernel.%I (LIKE kernel.%I INCLUDING ALL)', child, p_parent);
    IF to_regclass('kernel.' || quote_ident(p_parent || '_other')) IS NOT NULL
        AND NOT EXISTS (SELECT FROM kernel.partitions_of(p_parent) WHERE name = p_parent || '_other') THEN
        EXECUTE format(
            'WITH moved AS (DELETE FROM kernel.%1$I WHERE %2$I >= %3$L AND %2$I < %4$L RETURNING *)'
            ' INSERT INTO kernel.%5$I SELECT * FROM moved', p_parent || '_other', key, p_from, p_to, child
        );
    END IF;
    -- attaching, unlike CREATE TABLE ... PARTITION OF, lets others go on writing
    EXECUTE format(
        'ALTER TABLE kernel.%I ATTACH PARTITION kernel.%I FOR VALUES FROM (%L) TO (%L)', p_parent, child, p_from, p_to
    );
END
$$;

COMMENT ON FUNCTION kernel.make_partition(text, timestamptz, timestamptz) IS 'Makes a partition, with the rows of a detached _other that belong there.';

CREATE FUNCTION kernel.attach_rest(p_parent text, p_rest text, p_from text, p_to text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    rest regclass := to_regclass('kernel.' || quote_ident(p_rest));
    was text;
BEGIN
    IF rest IS NULL THEN
        EXECUTE format('CREATE TABLE kernel.%I (LIKE kernel.%I INCLUDING ALL)', p_rest, p_parent);
        EXECUTE format(
            'COMMENT ON TABLE kernel.%I IS %L', p_rest,
            CASE WHEN p_to = 'MAXVALUE' THEN 'Rows after the newest partition.' ELSE 'Rows before the oldest partition.' END
        );
        rest := ('kernel.' || quote_ident(p_rest))::regclass;
    END IF;
    FOR was IN
        -- DETACH ... CONCURRENTLY leaves the former bounds as a constraint
        SELECT conname FROM pg_constraint WHERE conrelid = rest AND contype = 'c' AND conname NOT IN (
            SELECT conname FROM pg_constraint WHERE conrelid = ('kernel.' || quote_ident(p_parent))::regclass
        )
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', rest, was);
    END LOOP;
    EXECUTE format('ALTER TABLE kernel.%I ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)', p_parent, rest, p_from, p_to);
END
$$;

COMMENT ON FUNCTION kernel.attach_rest(text, text, text, text) IS 'Attaches _past or _other with new bounds.';

CREATE FUNCTION kernel.split_other(p_parent text, p_from timestamptz, p_until timestamptz) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    other text := p_parent || '_other';
    child text := p_parent || to_char(p_from AT TIME ZONE 'UTC', '_YYYYMMDD');
BEGIN
    EXECUTE format('LOCK TABLE kernel.%I IN ACCESS EXCLUSIVE MODE', p_parent);
    EXECUTE format('ALTER TABLE kernel.%I DETACH PARTITION kernel.%I', p_parent, other);
    EXECUTE format('ALTER TABLE kernel.%I RENAME TO %I', other, child);
    -- the validated constraint says that all rows are within the bounds, so none is read
    EXECUTE format(
        'ALTER TABLE kernel.%I ATTACH PARTITION kernel.%I FOR VALUES FROM (%L) TO (%L)', p_parent, child, p_from, p_until
    );
    PERFORM kernel.attach_rest(p_parent, other, quote_literal(p_until), 'MAXVALUE');
END
$$;

COMMENT ON FUNCTION kernel.split_other(text, timestamptz, timestamptz) IS 'Makes _other, which rows have reached, the partition of p_from to p_until, and an empty _other after it.';

CREATE FUNCTION kernel.partition_step(p_parent text, p_keep_s double precision) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    past text := p_parent || '_past';
    other text := p_parent || '_other';
    today timestamptz := date_trunc('day', now(), 'UTC');
    oldest timestamptz := now() - p_keep_s * interval '1 second';
    key text := kernel.partition_key(p_parent);
    until timestamptz;
    until_name text;
    newest timestamptz;
    is_past boolean;
    is_other boolean;
    found_at record;
BEGIN
    -- what a kill, or a reader of many seconds, interrupted
    FOR found_at IN SELECT name FROM kernel.partitions_of(p_parent) WHERE is_pending LOOP
        RETURN format('ALTER TABLE kernel.%I DETACH PARTITION kernel.%I FINALIZE', p_parent, found_at.name);
    END LOOP;
    FOR found_at IN
        SELECT relname FROM pg_class
        WHERE relnamespace = 'kernel'::regnamespace AND relkind = 'r' AND NOT relispartition
          AND left(relname, -9) = p_parent AND relname ~ '_[0-9]{8}$'
          AND to_timestamp(right(relname, 8), 'YYYYMMDD') + interval '1 day' <= oldest
    LOOP
        RETURN format('DROP TABLE kernel.%I', found_at.relname);
    END LOOP;
    SELECT max(upper_at) FILTER (WHERE upper_at < 'infinity'), bool_or(name = past), bool_or(name = other)
    INTO newest, is_past, is_other FROM kernel.partitions_of(p_parent);
    newest := coalesce(newest, today);
    -- by age
    FOR found_at IN
        SELECT name FROM kernel.partitions_of(p_parent) WHERE lower_at > '-infinity' AND upper_at <= oldest
    LOOP
        RETURN format('ALTER TABLE kernel.%I DETACH PARTITION kernel.%I CONCURRENTLY', p_parent, found_at.name);
    END LOOP;
    -- without gaps
    FOR found_at IN
        SELECT * FROM (
            SELECT name, upper_at, lead(lower_at) OVER (ORDER BY lower_at) AS next_at FROM kernel.partitions_of(p_parent)
        ) ranges WHERE upper_at < next_at ORDER BY upper_at
    LOOP
        IF found_at.name = past AND found_at.next_at <= today THEN
            RETURN format('ALTER TABLE kernel.%I DETACH PARTITION kernel.%I CONCURRENTLY', p_parent, past);
        END IF;
        RETURN format(
            'SELECT kernel.make_partition(%L, %L, %L)', p_parent,
            CASE found_at.name WHEN past THEN greatest(found_at.upper_at, today) ELSE found_at.upper_at END,
            found_at.next_at
        );
    END LOOP;
    IF is_past IS NOT TRUE THEN
        SELECT min(lower_at) AS at INTO found_at FROM kernel.partitions_of(p_parent);
        RETURN format(
            'SELECT kernel.attach_rest(%L, %L, %L, %L)', p_parent, past, 'MINVALUE',
            quote_literal(CASE WHEN found_at.at > '-infinity' AND found_at.at < 'infinity' THEN found_at.at ELSE today END)
        );
    END IF;
    -- ahead
    IF is_other IS NOT TRUE THEN
        IF newest < today + interval '15 days' THEN
            RETURN format(
                'SELECT kernel.make_partition(%L, %L, %L)', p_parent, newest,
                date_trunc('day', newest, 'UTC') + interval '1 day'
            );
        END IF;
        RETURN format(
            'SELECT kernel.attach_rest(%L, %L, %L, %L)', p_parent, other, quote_literal(newest), 'MAXVALUE'
        );
    END IF;
    IF newest >= today + interval '8 days' THEN
        RETURN NULL;
    END IF;
    IF newest >= today + interval '2 days' THEN  -- no row can be missing its partition meanwhile
        RETURN format('ALTER TABLE kernel.%I DETACH PARTITION kernel.%I CONCURRENTLY', p_parent, other);
    END IF;
    -- nobody made partitions for long: rows are in _other, or will be in a moment
    until := today + interval '2 days';
    until_name := other || to_char(until AT TIME ZONE 'UTC', '"_until_"YYYYMMDD');
    FOR found_at IN
        SELECT conname, convalidated FROM pg_constraint
        WHERE conrelid = ('kernel.' || quote_ident(other))::regclass AND conname LIKE '%\_until\_%'
    LOOP
        IF found_at.conname <> until_name THEN  -- of an attempt on another day
            RETURN format('ALTER TABLE kernel.%I DROP CONSTRAINT %I', other, found_at.conname);
        ELSIF NOT found_at.convalidated THEN
            RETURN format('ALTER TABLE kernel.%I VALIDATE CONSTRAINT %I', other, until_name);
        END IF;
        RETURN format('SELECT kernel.split_other(%L, %L, %L)', p_parent, newest, until);
    END LOOP;
    RETURN format(
        'ALTER TABLE kernel.%1$I ADD CONSTRAINT %2$I CHECK (%3$I >= %4$L AND %3$I < %5$L) NOT VALID',
        other, until_name, key, newest, until
    );
END
$$;

COMMENT ON FUNCTION kernel.partition_step(text, double precision) IS 'Returns the next statement that keeps the partitions of a table: without gaps, a week or two ahead, and none older than p_keep_s seconds. Null when all is done.';

-- For the release before, which calls these two: without its partitions rows go to _other, where it prunes them.
CREATE OR REPLACE FUNCTION kernel.make_partitions(p_days integer) RETURNS integer LANGUAGE sql AS $$ SELECT 0 $$;

COMMENT ON FUNCTION kernel.make_partitions(integer) IS 'Does nothing; the release before partition_step calls it.';

CREATE OR REPLACE FUNCTION kernel.drop_partitions(p_parent text, p_keep_s double precision) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    child text;
    dropped integer := 0;
BEGIN
    FOR child IN
        SELECT name FROM kernel.partitions_of(p_parent)
        WHERE lower_at > '-infinity' AND upper_at <= now() - p_keep_s * interval '1 second'
    LOOP
        EXECUTE format('DROP TABLE kernel.%I', child);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;

COMMENT ON FUNCTION kernel.drop_partitions(text, double precision) IS 'Drops the partitions of a table whose rows are all older than p_keep_s seconds, for the release before partition_step; returns their number.';

DO $$
DECLARE
    parent text;
    day timestamptz;
    step text;
BEGIN
    PERFORM set_config('lock_timeout', '5s', true);
    PERFORM set_config('timezone', 'UTC', true);
    FOREACH parent IN ARRAY ARRAY['finished_jobs', 'events'] LOOP
        EXECUTE format('ALTER TABLE kernel.%1$I DETACH PARTITION kernel.%1$s_other', parent);
        EXECUTE format('COMMENT ON TABLE kernel.%s_other IS %L', parent, 'Rows after the newest partition.');
        EXECUTE format('CREATE TABLE kernel.%1$s_past (LIKE kernel.%1$I INCLUDING ALL)', parent);
        EXECUTE format('COMMENT ON TABLE kernel.%s_past IS %L', parent, 'Rows before the oldest partition.');
        EXECUTE format(
            'WITH moved AS (DELETE FROM kernel.%1$s_other WHERE %2$I < %3$L RETURNING *)'
            ' INSERT INTO kernel.%1$s_past SELECT * FROM moved', parent, kernel.partition_key(parent),
            (SELECT min(lower_at) FROM kernel.partitions_of(parent))
        );
        FOR day IN EXECUTE format(
            'SELECT DISTINCT date_trunc(''day'', %1$I) FROM kernel.%2$s_other WHERE %1$I < %3$L ORDER BY 1',
            kernel.partition_key(parent), parent, (SELECT max(upper_at) FROM kernel.partitions_of(parent))
        ) LOOP
            PERFORM kernel.make_partition(parent, day, day + interval '1 day');
        END LOOP;
        LOOP
            step := kernel.partition_step(parent, NULL);
            EXIT WHEN step IS NULL;
            EXECUTE step;
        END LOOP;
    END LOOP;
END
$$;
