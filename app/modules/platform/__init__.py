"""The platform itself: processes, jobs, schedules."""

from app.kernel.module import Feature, Module

MODULE = Module(
    package=__name__,
    summary="See and steer processes, jobs, schedules, events and errors.",
    permissions={
        "platform:processes:read": "See the processes that are alive.",
        "platform:audit:read": "Read the audit trail.",
        "platform:queues:read": "See the queues and how much is in them.",
        "platform:queues:write": "Pause, resume and limit queues.",
        "platform:jobs:read": "See jobs, with their payloads.",
        "platform:jobs:write": "Retry and cancel jobs.",
        "platform:dead_letters:read": "See dead letters, with their payloads.",
        "platform:dead_letters:write": "Retry and purge dead letters.",
        "platform:schedules:read": "See schedules.",
        "platform:schedules:write": "Trigger, pause and resume schedules.",
        "platform:events:read": "See which events were published.",
        "platform:events:write": "Replay events to a subscriber.",
        "platform:errors:read": "See captured errors, with what was going on.",
        "platform:errors:write": "Resolve and mute captured errors.",
    },
    features=(
        Feature("processes:Processes"),
        Feature("audit:AuditTrail"),
        Feature("queues:Queues", "queues", "See, pause, resume and limit queues."),
        Feature("jobs:Jobs", "jobs", "See, retry and cancel jobs."),
        Feature("dead_letters:DeadLetters", "dead-letters", "See, retry and purge jobs that were given up."),
        Feature("schedules:Schedules", "schedules", "See, trigger, pause and resume schedules."),
        Feature("events:Events", "events", "See the events that were published, and replay them."),
        Feature("errors:CapturedErrors", "errors", "See, resolve and mute captured errors."),
        Feature("orphans:Orphans", "orphans", "See and remove what removed modules left in the queue."),
        Feature("alerts:Alerts", "errors"),
        Feature("maintenance:Maintenance"),
    ),
    providers="providers:PROVIDERS",
    schedules="maintenance:SCHEDULES",
)
