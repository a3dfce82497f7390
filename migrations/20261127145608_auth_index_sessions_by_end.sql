-- transactional: false
-- Sessions by their end, for retention.
CREATE INDEX CONCURRENTLY IF NOT EXISTS sessions_end ON auth.sessions (least(idle_expires_at, expires_at, coalesce(ended_at, 'infinity')));
