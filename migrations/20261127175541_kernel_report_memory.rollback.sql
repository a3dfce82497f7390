-- undoes 20261127175541_kernel_report_memory.sql
ALTER TABLE kernel.processes DROP COLUMN workers, DROP COLUMN worker, DROP COLUMN memory_bytes;
