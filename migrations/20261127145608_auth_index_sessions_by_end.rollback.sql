-- transactional: false
DROP INDEX CONCURRENTLY IF EXISTS auth.sessions_end;
