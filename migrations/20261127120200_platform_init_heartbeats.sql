-- One row per minute while schedules and jobs work; the newest says how long ago that was.
CREATE SCHEMA platform;

COMMENT ON SCHEMA platform IS 'Tables of the platform module.';

CREATE TABLE platform.heartbeats (
    id uuid PRIMARY KEY,
    recorded_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE platform.heartbeats IS 'One row per minute while schedules and jobs work.';
COMMENT ON COLUMN platform.heartbeats.id IS 'UUIDv7 of the row.';
COMMENT ON COLUMN platform.heartbeats.recorded_at IS 'When the job ran.';

CREATE INDEX heartbeats_recorded_at ON platform.heartbeats (recorded_at);
