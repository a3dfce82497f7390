-- Processes of the releases that remember callers must have stopped.
DROP TRIGGER api_keys_invalidate_when_emptied ON auth.api_keys;
DROP TRIGGER api_keys_invalidate_changed ON auth.api_keys;
DROP TRIGGER api_keys_invalidate_deleted ON auth.api_keys;
DROP FUNCTION auth.invalidate_changed_api_keys, auth.invalidate_deleted_api_keys;
