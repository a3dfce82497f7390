-- Lists with a filter for something rare, over all partitions. An index of a partitioned table cannot be built
-- concurrently, so it is made for the table alone; partition_step then builds it for one partition after the other.

CREATE FUNCTION kernel.index_step(p_parent text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    part record;
    has_rows boolean;
    build text;
BEGIN
    FOR part IN
        SELECT p.name, x.indexrelid::regclass AS index, left(p.name || '_' || i.relname, 63) AS child,
            regexp_replace(pg_get_indexdef(x.indexrelid), '^CREATE INDEX .* ON ONLY [^ ]+ ', '') AS definition,
            c.oid AS built, b.indisvalid AS is_valid
        FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid CROSS JOIN kernel.partitions_of(p_parent) p
        LEFT JOIN pg_class c ON c.relname = left(p.name || '_' || i.relname, 63) AND c.relnamespace = i.relnamespace
        LEFT JOIN pg_index b ON b.indexrelid = c.oid
        WHERE x.indrelid = ('kernel.' || quote_ident(p_parent))::regclass AND NOT x.indisvalid AND NOT EXISTS (
            SELECT FROM pg_inherits h JOIN pg_index a ON a.indexrelid = h.inhrelid
            WHERE h.inhparent = x.indexrelid AND a.indrelid = ('kernel.' || quote_ident(p.name))::regclass
        )
        ORDER BY pg_relation_size(('kernel.' || quote_ident(p.name))::regclass), p.name
    LOOP
        IF part.built IS NULL THEN
            EXECUTE format('SELECT EXISTS (SELECT FROM kernel.%I)', part.name) INTO has_rows;
            build := CASE WHEN has_rows THEN 'CREATE INDEX CONCURRENTLY' ELSE 'CREATE INDEX' END;
            RETURN format('%s %I ON kernel.%I %s', build, part.child, part.name, part.definition);
        ELSIF NOT part.is_valid THEN  -- a build that was interrupted
            RETURN format('DROP INDEX CONCURRENTLY kernel.%I', part.child);
        END IF;
        RETURN format('ALTER INDEX %s ATTACH PARTITION kernel.%I', part.index, part.child);
    END LOOP;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION kernel.index_step(text) IS 'Returns the next statement that builds an index of a partitioned table for its partitions. Null when all have it.';

CREATE OR REPLACE FUNCTION kernel.partition_step(p_parent text, p_keep_s double precision) RETURNS text
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
        RETURN kernel.index_step(p_parent);
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

-- squawk-ignore require-concurrent-index-creation
CREATE INDEX finished_jobs_task ON ONLY kernel.finished_jobs (task, id);
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX finished_jobs_queue ON ONLY kernel.finished_jobs (queue, id);
-- what `jobs list` shows unless it is asked for all
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX finished_jobs_single ON ONLY kernel.finished_jobs (id) WHERE schedule IS NULL OR outcome <> 'done';
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX finished_jobs_cancelled ON ONLY kernel.finished_jobs (id) WHERE outcome = 'cancelled';
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX events_published_at ON ONLY kernel.events USING brin (published_at) WITH (pages_per_range = 16, autosummarize = on);

-- where there are no rows yet, at once
DO $$
DECLARE
    parent text;
    step text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['finished_jobs', 'events'] LOOP
        LOOP
            step := kernel.index_step(parent);
            EXIT WHEN step IS NULL OR step LIKE '% CONCURRENTLY %';
            EXECUTE step;
        END LOOP;
    END LOOP;
END
$$;
