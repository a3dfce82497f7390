"""Notifications about captured errors and disabled actors."""

from dataclasses import dataclass
from typing import ClassVar

from app.kernel.actions import Transaction, change, subscriber, task
from app.kernel.actions.columns import Column, Columns
from app.kernel.config import Misconfigured, Settings
from app.kernel.errors import NotFound, Unavailable
from app.kernel.paging import Page
from app.kernel.product import NAME
from app.kernel.queue import NeverRetry
from app.kernel.queue.enqueue import Queue
from app.kernel.sentinel import NOTIFY
from app.kernel.sentinel.postgres import Errors
from app.modules.auth.portal import ActorDisabled
from app.modules.platform.domain.messages import SEND_MESSAGE, Message, Recipients, texts


@dataclass(frozen=True, slots=True)
class Tried:
    """The result of a test message; `problem` is empty if the recipient accepted it."""

    recipient: str
    problem: str

    columns: ClassVar[Columns] = (
        Column("recipient"),
        Column("result", lambda tried: tried.problem or "accepted", is_state=True),
    )

    @property
    def failed(self) -> bool:
        """Whether the recipient rejected the message."""
        return bool(self.problem)


@dataclass(frozen=True, slots=True)
class Alerts:
    """Send notifications about captured errors and disabled actors."""

    errors: Errors
    recipients: Recipients
    queue: Queue
    settings: Settings

    @task(NOTIFY)
    async def notify(self, tx: Transaction) -> int:
        """Enqueue messages about new and regressed groups of errors; return the number of groups. Exactly once."""
        due = await self.errors.take_due(tx)
        for title, body in texts(due, self.settings.environment):
            await self._enqueue(tx, title, body)
        return len(due)

    @subscriber("platform.notify_of_disabled_actor", ActorDisabled)
    async def actor_disabled(self, tx: Transaction, event: ActorDisabled) -> None:
        """Enqueue messages about a disabled actor, which may indicate an attack. Exactly once."""
        title = f"[{self.settings.environment}] an actor was disabled"
        await self._enqueue(tx, title, f"actor {event.actor_id}: its sessions and keys have ended")

    @task(SEND_MESSAGE)
    async def send(self, message: Message) -> None:
        """Send one message to one recipient.

        Raises Unavailable if the job should be retried, NeverRetry if the settings no longer have the recipient.
        """
        try:
            await self.recipients.send(message)
        except NotFound as error:
            raise NeverRetry(str(error)) from None

    @change("platform.try_recipients", command="errors notify-test")
    async def attempt(self) -> Page[Tried]:
        """Send a test message to every recipient of error notifications (sentinel.notify_urls). Not safe to repeat."""
        names = self.recipients.names()
        if not names:
            raise Misconfigured(
                "there are no recipients of error notifications; set sentinel.notify_urls",
                hint=f"{NAME} config explain sentinel.notify_urls",
            )
        return Page([await self._try(name) for name in names])

    async def _enqueue(self, tx: Transaction, title: str, body: str) -> None:
        for recipient in self.recipients.names():
            await self.queue.enqueue(tx, SEND_MESSAGE, Message(recipient, title, body))

    async def _try(self, name: str) -> Tried:
        title = f"[{self.settings.environment}] a test"
        try:
            await self.recipients.send(Message(name, title, "Messages about errors arrive here."))
        except Unavailable as error:
            return Tried(name, str(error))
        return Tried(name, "")
