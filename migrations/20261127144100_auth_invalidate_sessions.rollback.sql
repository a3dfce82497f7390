-- Processes of the releases that remember callers must have stopped.
DROP TRIGGER sessions_invalidate_when_emptied ON auth.sessions;
DROP TRIGGER sessions_invalidate_changed ON auth.sessions;
DROP TRIGGER sessions_invalidate_deleted ON auth.sessions;
DROP FUNCTION auth.invalidate_changed_sessions, auth.invalidate_deleted_sessions, auth.invalidate_all;
