-- kernel: What waits in NATS for each subscriber
ALTER TABLE kernel.subscriptions ADD COLUMN nats_pending bigint, ADD COLUMN measured_at timestamptz;

COMMENT ON COLUMN kernel.subscriptions.nats_pending IS 'Number of events in NATS that the subscriber has not acknowledged, when a consumer last looked; null without NATS.';
COMMENT ON COLUMN kernel.subscriptions.measured_at IS 'When a consumer last looked.';
