DROP TABLE kernel.canary_letters, kernel.canaries;
