-- Refusals that repeat are one entry with a count, so that nobody fills the audit trail by being refused.
ALTER TABLE kernel.audit
    ADD COLUMN count integer NOT NULL DEFAULT 1,
    ADD COLUMN last_at timestamptz,
    ADD COLUMN window_at timestamptz,
    ADD COLUMN network text;

CREATE UNIQUE INDEX audit_refusals ON kernel.audit
    (window_at, action, outcome, network, coalesce(actor_id, '00000000-0000-0000-0000-000000000000'))
    WHERE window_at IS NOT NULL;

-- the count of such an entry grows; nothing else of the trail ever changes
DROP TRIGGER audit_append_only ON kernel.audit;

CREATE FUNCTION kernel.refuse_change_but_count() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.window_at IS NULL OR NEW.count <= OLD.count
        OR to_jsonb(NEW) - 'count' - 'last_at' <> to_jsonb(OLD) - 'count' - 'last_at' THEN
        RAISE EXCEPTION '% is append only', TG_TABLE_NAME;
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER audit_append_only BEFORE UPDATE ON kernel.audit
FOR EACH ROW EXECUTE FUNCTION kernel.refuse_change_but_count();

CREATE TRIGGER audit_not_emptied BEFORE TRUNCATE ON kernel.audit
FOR EACH STATEMENT EXECUTE FUNCTION kernel.refuse_change();
