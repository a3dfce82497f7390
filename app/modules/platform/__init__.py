"""Administration of processes, queues, jobs, schedules, events and errors."""

from app.kernel.module import Feature, Module

MODULE = Module(
    package=__name__,
    summary="Administer processes, queues, jobs, schedules, events and errors.",
    permissions={
        "platform:processes:read": "List live processes.",
        "platform:audit:read": "Read the audit trail.",
        "platform:queues:read": "List queues and their job counts.",
        "platform:queues:write": "Pause, resume and limit queues.",
        "platform:jobs:read": "Read jobs and their payloads.",
        "platform:jobs:write": "Retry and cancel jobs.",
        "platform:dead_letters:read": "Read dead letters and their payloads.",
        "platform:dead_letters:write": "Retry and purge dead letters.",
        "platform:schedules:read": "List schedules.",
        "platform:schedules:write": "Trigger, pause and resume schedules.",
        "platform:events:read": "List published events.",
        "platform:events:write": "Replay events to a subscriber.",
        "platform:errors:read": "Read captured errors and their context.",
        "platform:errors:write": "Resolve and mute captured errors.",
    },
    features=(
        Feature("processes:Processes", "processes", "List live processes."),
        Feature("audit:AuditTrail"),
        Feature("queues:Queues", "queues", "List, pause, resume and limit queues."),
        Feature("jobs:Jobs", "jobs", "List, show, retry and cancel jobs."),
        Feature("dead_letters:DeadLetters", "dead-letters", "List, show, retry and purge dead letters."),
        Feature("schedules:Schedules", "schedules", "List, show, trigger, pause and resume schedules."),
        Feature("events:Events", "events", "List and replay published events."),
        Feature("errors:CapturedErrors", "errors", "List, show, resolve and mute captured errors."),
        Feature("orphans:Orphans", "orphans", "List and remove queue rows of removed modules."),
        Feature("alerts:Alerts", "errors"),
        Feature("maintenance:Maintenance"),
    ),
    providers="providers:PROVIDERS",
    schedules="maintenance:SCHEDULES",
    checks="checks:CHECKS",
    console=True,
)
