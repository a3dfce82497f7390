-- transactional: false
-- Disabled actors.
CREATE INDEX CONCURRENTLY IF NOT EXISTS actors_disabled ON auth.actors (id) WHERE NOT is_active;
