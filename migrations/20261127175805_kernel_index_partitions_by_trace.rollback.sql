DROP INDEX kernel.events_trace, kernel.finished_jobs_trace;
