-- kernel: Memory of processes, and which of the workers of a supervisor they are
ALTER TABLE kernel.processes
    ADD COLUMN memory_bytes bigint, ADD COLUMN worker integer, ADD COLUMN workers integer;

COMMENT ON COLUMN kernel.processes.memory_bytes IS 'Resident memory at the last report; null where the system does not tell.';
COMMENT ON COLUMN kernel.processes.worker IS 'Number of the worker among those of its supervisor; null without a supervisor.';
COMMENT ON COLUMN kernel.processes.workers IS 'How many workers its supervisor runs; null without a supervisor.';
