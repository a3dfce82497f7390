-- Drops the tables of the kernel with what is in them. Without CASCADE: refused while another schema depends on them.
DROP TABLE
    kernel.watch, kernel.errors, kernel.audit, kernel.subscriptions, kernel.events, kernel.schedules,
    kernel.finished_jobs, kernel.dead_letters, kernel.jobs, kernel.queues, kernel.processes;
DROP FUNCTION
    kernel.refuse_recent, kernel.refuse_change_but_count, kernel.refuse_change, kernel.drop_partitions,
    kernel.make_partitions, kernel.pass_turn, kernel.fetch_jobs, kernel.job_rank, kernel.uuid7;
DROP SCHEMA kernel;
