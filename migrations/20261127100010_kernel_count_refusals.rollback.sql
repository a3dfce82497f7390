DROP TRIGGER audit_not_emptied ON kernel.audit;
DROP TRIGGER audit_append_only ON kernel.audit;
DROP FUNCTION kernel.refuse_change_but_count;
DROP INDEX kernel.audit_refusals;
ALTER TABLE kernel.audit DROP COLUMN count, DROP COLUMN last_at, DROP COLUMN window_at, DROP COLUMN network;

CREATE TRIGGER audit_append_only BEFORE UPDATE OR TRUNCATE ON kernel.audit
FOR EACH STATEMENT EXECUTE FUNCTION kernel.refuse_change();
