-- transactional: false
DROP INDEX CONCURRENTLY IF EXISTS auth.sessions_browser_token;
