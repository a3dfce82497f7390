-- undoes 20261127181900_kernel_measure_subscriptions.sql
ALTER TABLE kernel.subscriptions DROP COLUMN measured_at, DROP COLUMN nats_pending;
