-- Events on their way through NATS: what a relay has to send, and what subscribers have taken over.

CREATE TABLE kernel.event_outbox (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id uuid NOT NULL,
    type text NOT NULL,
    version integer NOT NULL,
    payload jsonb NOT NULL,
    trace_context text,
    published_at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.2);

COMMENT ON TABLE kernel.event_outbox IS 'Events that wait to be sent to NATS; a relay deletes a row when the server has acknowledged its event.';
COMMENT ON COLUMN kernel.event_outbox.seq IS 'Order of publishing.';
COMMENT ON COLUMN kernel.event_outbox.event_id IS 'The event in kernel.events, and the id of its message.';
COMMENT ON COLUMN kernel.event_outbox.type IS 'Type of the event, which is its subject.';
COMMENT ON COLUMN kernel.event_outbox.version IS 'Schema version of the payload.';
COMMENT ON COLUMN kernel.event_outbox.payload IS 'Fields of the event.';
COMMENT ON COLUMN kernel.event_outbox.trace_context IS 'W3C traceparent of whoever published the event.';
COMMENT ON COLUMN kernel.event_outbox.published_at IS 'When the event was published.';

CREATE TABLE kernel.event_inbox (
    event_id uuid NOT NULL,
    subscriber text NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (event_id, subscriber)
);

COMMENT ON TABLE kernel.event_inbox IS 'Events from NATS that a subscriber has handled in a transaction, or that became jobs: they are ignored when they are delivered again.';
COMMENT ON COLUMN kernel.event_inbox.event_id IS 'The event; UUIDv7, so in the order of publishing.';
COMMENT ON COLUMN kernel.event_inbox.subscriber IS 'Name of the subscriber.';
COMMENT ON COLUMN kernel.event_inbox.taken_at IS 'When it was handled, or became a job.';
