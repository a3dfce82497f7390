-- undoes 20261127234000_kernel_describe_backup_columns.sql
COMMENT ON COLUMN kernel.backup_runs.id IS NULL;
COMMENT ON COLUMN kernel.backup_runs.kind IS NULL;
COMMENT ON COLUMN kernel.backup_runs.state IS NULL;
COMMENT ON COLUMN kernel.backup_runs.engine IS NULL;
COMMENT ON COLUMN kernel.backup_runs.started_at IS NULL;
COMMENT ON COLUMN kernel.backup_runs.finished_at IS NULL;
COMMENT ON COLUMN kernel.backup_runs.problem IS NULL;
COMMENT ON COLUMN kernel.backup_wal.timeline IS NULL;
COMMENT ON COLUMN kernel.backup_wal.stored_at IS NULL;
COMMENT ON COLUMN kernel.backup_wal.reported_at IS NULL;
COMMENT ON COLUMN kernel.backup_wal.runner IS NULL;
