DROP TABLE kernel.event_inbox;
DROP TABLE kernel.event_outbox;
