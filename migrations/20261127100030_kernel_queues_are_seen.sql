-- Queues that consumers have handlers for are rows, so that other processes know them; dates that no client can read.
ALTER TABLE kernel.queues ADD COLUMN seen_at timestamptz NOT NULL DEFAULT now();

UPDATE kernel.jobs SET run_at = now() + interval '10 years' WHERE run_at > now() + interval '10 years';
