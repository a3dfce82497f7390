DROP TABLE kernel.subscriptions;
DROP TABLE kernel.events;
DROP TABLE kernel.audit;
DROP FUNCTION kernel.refuse_change;
