DROP TABLE kernel.watch;
DROP TABLE kernel.errors;
