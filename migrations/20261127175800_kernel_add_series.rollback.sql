DROP FUNCTION kernel.max_gauges;
DROP FUNCTION kernel.sum_counts;
DROP TABLE kernel.series;
DROP TABLE kernel.counted;
DROP TABLE kernel.counters;
ALTER TABLE kernel.processes DROP COLUMN rollout_id;
DROP TABLE kernel.rollouts;
