-- Service accounts have API keys, people have passwords. What changes of type have left behind is removed.
DELETE FROM auth.api_keys k USING auth.actors a WHERE a.id = k.actor_id AND a.type <> 'service_acc';
DELETE FROM auth.totp t USING auth.actors a WHERE a.id = t.actor_id AND a.type = 'service_acc';

UPDATE auth.sessions s SET ended_at = now() FROM auth.actors a
WHERE a.id = s.actor_id AND a.type = 'service_acc' AND s.api_key_id IS NULL AND s.ended_at IS NULL;

UPDATE auth.actors SET password_hash = NULL WHERE type = 'service_acc' AND password_hash IS NOT NULL;
