"""What runs the jobs of one name, and how it is given their payload."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from app.kernel.queue import Handler, Mode, NeverRetry, Operation, Subscriber
from app.kernel.queue.codec import adapter, decode_event, version_of
from app.kernel.queue.leases import Job


class FromTheFuture(Exception):
    """A newer release published this event."""


@dataclass(frozen=True)
class Runner:
    """What runs the jobs of one name."""

    operation: Operation
    mode: Mode
    handler: Handler | Subscriber

    @cached_property
    def operation_id(self) -> str:
        """The id of the operation; empty for a plain function."""
        return getattr(type(self.operation), "operation_id", "")

    def argument(self, job: Job) -> tuple[Any, ...]:
        """Return the payload as the operation takes it. Raises ValidationError, NeverRetry, FromTheFuture."""
        if isinstance(self.handler, Subscriber):
            version = job.event_version or 1
            if version > version_of(self.handler.event):
                raise FromTheFuture
            try:
                return (decode_event(self.handler.event, version, job.payload or "null"),)
            except ValidationError:
                raise
            except Exception as error:
                raise NeverRetry(f"the event of version {version} cannot be upgraded: {error!r}") from error
        if self.handler.task.payload is None:
            return ()
        return (adapter(self.handler.task.payload).validate_json(job.payload or "null"),)
