-- Processes of the releases that remember callers must have stopped.
DROP TRIGGER actors_invalidate_when_emptied ON auth.actors;
DROP TRIGGER actors_invalidate_changed ON auth.actors;
DROP TRIGGER actors_invalidate_deleted ON auth.actors;
DROP FUNCTION auth.invalidate_changed_actors, auth.invalidate_deleted_actors;
