ALTER TABLE kernel.jobs DROP COLUMN origin_id;
