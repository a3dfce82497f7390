"""Event transport through NATS JetStream: an outbox in PostgreSQL, a relay, and durable pull consumers."""
