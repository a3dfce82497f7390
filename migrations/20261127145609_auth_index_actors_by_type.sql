-- transactional: false
-- Actors of a rare type.
CREATE INDEX CONCURRENTLY IF NOT EXISTS actors_type ON auth.actors (type, id);
