ALTER TABLE kernel.queues DROP COLUMN seen_at;
