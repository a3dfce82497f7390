-- Who did what to whom; append only. Events and who subscribes to them.
CREATE TABLE kernel.audit (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    action text NOT NULL,
    outcome text NOT NULL,
    actor_id uuid,
    session_id uuid,
    target text,
    details jsonb NOT NULL DEFAULT '{}',
    address text,
    user_agent text,
    request_id text,
    trace_id text
);

CREATE INDEX audit_actor ON kernel.audit (actor_id, id);
CREATE INDEX audit_target ON kernel.audit (target, id);
CREATE INDEX audit_action ON kernel.audit (action, id);

CREATE FUNCTION kernel.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append only', TG_TABLE_NAME;
END
$$;

CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON kernel.audit
FOR EACH STATEMENT EXECUTE FUNCTION kernel.refuse_change();

CREATE TABLE kernel.events (
    id uuid PRIMARY KEY,
    type text NOT NULL,
    payload jsonb NOT NULL,
    trace_context text,
    published_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX events_type ON kernel.events (type, id);

CREATE TABLE kernel.subscriptions (
    subscriber text PRIMARY KEY,
    event_type text NOT NULL
);

CREATE INDEX subscriptions_event_type ON kernel.subscriptions (event_type);
