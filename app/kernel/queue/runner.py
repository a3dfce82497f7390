"""What runs the jobs of one name, and how it is given their payload."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from app.kernel.queue import Handler, Mode, NeverRetry, Operation, Subscriber
from app.kernel.queue.codec import adapter, decode_event, problems, version_of
from app.kernel.queue.leases import Job
from app.kernel.text import shown


class FromTheFuture(Exception):
    """A newer release published this event."""


class Unreadable(Exception):
    """The payload does not fit what this release reads; the message says why, without the values."""


@dataclass(frozen=True)
class Runner:
    """What runs the jobs of one name."""

    operation: Operation
    mode: Mode
    handler: Handler | Subscriber

    @cached_property
    def operation_id(self) -> str:
        """The id of the operation; empty for a plain function."""
        return getattr(self.operation, "operation_id", "")

    def argument(self, job: Job) -> tuple[Any, ...]:
        """Return the payload as the operation takes it. Raises Unreadable, NeverRetry, FromTheFuture."""
        try:
            if isinstance(self.handler, Subscriber):
                return (self._event(self.handler, job),)
            if self.handler.task.payload is None:
                return ()
            return (adapter(self.handler.task.payload).validate_json(job.payload or "null"),)
        except ValidationError as error:
            raise Unreadable(f"the payload does not fit: {problems(error)}") from None

    @staticmethod
    def _event(subscriber: Subscriber, job: Job) -> object:
        version = job.event_version or 1
        if version > version_of(subscriber.event):
            raise FromTheFuture
        try:
            return decode_event(subscriber.event, version, job.payload or "null")
        except ValidationError:
            raise
        except Exception as error:
            reason = f"the event of version {version} cannot be upgraded: {shown(error, repr)}"
            raise NeverRetry(reason) from error
