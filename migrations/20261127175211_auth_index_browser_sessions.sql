-- transactional: false
-- Each request of a browser finds its session by the hash of its token.
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS sessions_browser_token ON auth.sessions (browser_token) WHERE browser_token IS NOT NULL;
