-- Captured errors, grouped; who looks out for outages.
CREATE TABLE kernel.errors (
    id uuid PRIMARY KEY DEFAULT kernel.uuid7(),
    fingerprint text NOT NULL UNIQUE,
    kind text NOT NULL,
    type text NOT NULL,
    title text NOT NULL,
    culprit text NOT NULL,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'resolved', 'muted', 'regressed')),
    count bigint NOT NULL,
    processes text[] NOT NULL,
    first_seen_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    first_release text NOT NULL,
    last_release text NOT NULL,
    samples jsonb NOT NULL,
    muted_until timestamptz,
    notified_at timestamptz,
    notified_count bigint NOT NULL DEFAULT 0
);

CREATE INDEX errors_last_seen_at ON kernel.errors (last_seen_at);

CREATE TABLE kernel.watch (
    id integer PRIMARY KEY CHECK (id = 1),
    checked_at timestamptz NOT NULL
);

INSERT INTO kernel.watch (id, checked_at) VALUES (1, '-infinity');
