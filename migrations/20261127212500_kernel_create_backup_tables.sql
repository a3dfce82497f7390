-- kernel: Runs of backups, drills and prunings, and the position of the stored WAL
CREATE TABLE kernel.backup_runs (
    id uuid PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('backup', 'drill', 'prune', 'verify')),
    state text NOT NULL CHECK (state IN ('running', 'succeeded', 'failed')),
    engine text NOT NULL,
    backup_id text,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    runner text NOT NULL,
    size_bytes bigint,
    stored_bytes bigint,
    problem text,
    details jsonb NOT NULL DEFAULT '{}'
);

CREATE INDEX backup_runs_by_kind ON kernel.backup_runs (kind, started_at DESC);

COMMENT ON TABLE kernel.backup_runs IS 'One row for each run of a backup, a drill, a pruning or a verification.';
COMMENT ON COLUMN kernel.backup_runs.backup_id IS 'The backup that was taken, restored or verified.';
COMMENT ON COLUMN kernel.backup_runs.runner IS 'Host and process id.';
COMMENT ON COLUMN kernel.backup_runs.size_bytes IS 'Size of the data.';
COMMENT ON COLUMN kernel.backup_runs.stored_bytes IS 'Size on the target.';
COMMENT ON COLUMN kernel.backup_runs.details IS 'Results by kind: of a drill its checks, times and window of loss.';

CREATE TABLE kernel.backup_wal (
    cluster text PRIMARY KEY,
    timeline integer NOT NULL,
    lsn pg_lsn NOT NULL,
    stored_at timestamptz NOT NULL,
    waiting_since timestamptz,
    problem text,
    reported_at timestamptz NOT NULL DEFAULT now(),
    runner text NOT NULL
);

COMMENT ON TABLE kernel.backup_wal IS 'How far the WAL of a cluster is stored on the target of backups.';
COMMENT ON COLUMN kernel.backup_wal.cluster IS 'System identifier of the database cluster.';
COMMENT ON COLUMN kernel.backup_wal.lsn IS 'WAL before this is stored.';
COMMENT ON COLUMN kernel.backup_wal.waiting_since IS 'Since when WAL waits to be stored; null if none waits.';
COMMENT ON COLUMN kernel.backup_wal.problem IS 'A gap in the stored WAL, or why it is not stored now; null if all is well.';
