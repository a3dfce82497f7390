-- kernel: Comments on the columns of runs of backups and of stored WAL
COMMENT ON COLUMN kernel.backup_runs.id IS 'UUIDv7.';
COMMENT ON COLUMN kernel.backup_runs.kind IS 'backup, drill, prune or verify.';
COMMENT ON COLUMN kernel.backup_runs.state IS 'running, succeeded or failed.';
COMMENT ON COLUMN kernel.backup_runs.engine IS 'builtin, pgbackrest or managed.';
COMMENT ON COLUMN kernel.backup_runs.started_at IS 'When it began.';
COMMENT ON COLUMN kernel.backup_runs.finished_at IS 'When it ended; null while it runs.';
COMMENT ON COLUMN kernel.backup_runs.problem IS 'Why it failed; null otherwise.';
COMMENT ON COLUMN kernel.backup_wal.timeline IS 'Timeline of the position.';
COMMENT ON COLUMN kernel.backup_wal.stored_at IS 'When WAL was stored last.';
COMMENT ON COLUMN kernel.backup_wal.reported_at IS 'When the row was written last.';
COMMENT ON COLUMN kernel.backup_wal.runner IS 'Host and process id.';
