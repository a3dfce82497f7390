"""The platform itself: processes, jobs, schedules."""
