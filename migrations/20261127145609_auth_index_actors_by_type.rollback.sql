-- transactional: false
DROP INDEX CONCURRENTLY IF EXISTS auth.actors_type;
