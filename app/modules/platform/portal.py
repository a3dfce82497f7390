"""What other modules may use of platform."""

PERMISSIONS = {
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
    "platform:errors:read": "See captured errors, with what was going on.",
    "platform:errors:write": "Resolve and mute captured errors.",
    "platform:events:write": "Replay events to a subscriber.",
}
"""The permissions that platform declares."""
