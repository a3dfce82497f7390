DROP TABLE kernel.purged_dead_letters;
