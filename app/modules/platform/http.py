"""Routes of the platform API."""

from app.kernel.http.routes import Route
from app.kernel.process import Process
from app.modules.platform import wiring

_SEE_JOBS, _CHANGE_JOBS = "platform:jobs:read", "platform:jobs:write"
_SEE_QUEUES, _CHANGE_QUEUES = "platform:queues:read", "platform:queues:write"
_SEE_DEAD, _CHANGE_DEAD = "platform:dead_letters:read", "platform:dead_letters:write"
_SEE_SCHEDULES, _CHANGE_SCHEDULES = "platform:schedules:read", "platform:schedules:write"
_SEE_ERRORS, _CHANGE_ERRORS = "platform:errors:read", "platform:errors:write"
_SEE_EVENTS, _CHANGE_EVENTS = "platform:events:read", "platform:events:write"


async def routes(p: Process) -> list[Route]:
    """Return what the platform API serves."""
    platform, jobs, queues = await p.use(wiring.platform), await p.use(wiring.jobs), await p.use(wiring.queues)
    dead_letters, schedules = await p.use(wiring.dead_letters), await p.use(wiring.schedules)
    events, errors = await p.use(wiring.events), await p.use(wiring.errors)
    return [
        Route("GET", "/platform/v1/processes", platform.list_processes, permission="platform:processes:read"),
        Route("GET", "/platform/v1/audit", platform.list_audit, permission="platform:audit:read"),
        Route("GET", "/platform/v1/queues", queues.list, permission=_SEE_QUEUES),
        Route("POST", "/platform/v1/queues/{name}/pause", queues.pause, permission=_CHANGE_QUEUES),
        Route("POST", "/platform/v1/queues/{name}/resume", queues.resume, permission=_CHANGE_QUEUES),
        Route("PUT", "/platform/v1/queues/{name}/concurrency", queues.limit, permission=_CHANGE_QUEUES),
        Route("GET", "/platform/v1/jobs", jobs.list, permission=_SEE_JOBS),
        Route("GET", "/platform/v1/jobs/{id}", jobs.get, permission=_SEE_JOBS),
        Route("POST", "/platform/v1/jobs/{id}/retry", jobs.retry, permission=_CHANGE_JOBS),
        Route("POST", "/platform/v1/jobs/{id}/cancel", jobs.cancel, permission=_CHANGE_JOBS),
        Route("GET", "/platform/v1/dead-letters", dead_letters.list, permission=_SEE_DEAD),
        Route("POST", "/platform/v1/dead-letters/retry", dead_letters.retry_some, permission=_CHANGE_DEAD),
        Route("POST", "/platform/v1/dead-letters/purge", dead_letters.purge_some, permission=_CHANGE_DEAD),
        Route("GET", "/platform/v1/dead-letters/{id}", dead_letters.get, permission=_SEE_DEAD),
        Route("DELETE", "/platform/v1/dead-letters/{id}", dead_letters.purge, permission=_CHANGE_DEAD),
        Route("POST", "/platform/v1/dead-letters/{id}/retry", dead_letters.retry, permission=_CHANGE_DEAD),
        Route("GET", "/platform/v1/schedules", schedules.list, permission=_SEE_SCHEDULES),
        Route("POST", "/platform/v1/schedules/{name}/trigger", schedules.trigger, permission=_CHANGE_SCHEDULES),
        Route("POST", "/platform/v1/schedules/{name}/pause", schedules.pause, permission=_CHANGE_SCHEDULES),
        Route("POST", "/platform/v1/schedules/{name}/resume", schedules.resume, permission=_CHANGE_SCHEDULES),
        Route("GET", "/platform/v1/events", events.list, permission=_SEE_EVENTS),
        Route("POST", "/platform/v1/events/replay", events.replay, permission=_CHANGE_EVENTS),
        Route("GET", "/platform/v1/errors", errors.list, permission=_SEE_ERRORS),
        Route("GET", "/platform/v1/errors/{id}", errors.get, permission=_SEE_ERRORS),
        Route("POST", "/platform/v1/errors/{id}/resolve", errors.resolve, permission=_CHANGE_ERRORS),
        Route("POST", "/platform/v1/errors/{id}/mute", errors.mute, permission=_CHANGE_ERRORS),
    ]
