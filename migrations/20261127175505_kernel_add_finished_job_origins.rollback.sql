ALTER TABLE kernel.finished_jobs DROP COLUMN event_version, DROP COLUMN turn_key, DROP COLUMN origin_id;
