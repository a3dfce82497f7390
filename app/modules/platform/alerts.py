"""Alerts: notifying people of captured errors, and of actors that were disabled."""

from dataclasses import dataclass
from typing import ClassVar

from app.kernel.actions import Transaction, change, subscriber, task
from app.kernel.actions.columns import Column, Columns
from app.kernel.config import Misconfigured, Settings
from app.kernel.errors import NotFound, Unavailable
from app.kernel.paging import Page
from app.kernel.queue import NeverRetry
from app.kernel.queue.enqueue import Queue
from app.kernel.sentinel import NOTIFY
from app.kernel.sentinel.postgres import Errors
from app.modules.auth.portal import ActorDisabled
from app.modules.platform.domain.messages import SEND_MESSAGE, Message, Recipients, texts


@dataclass(frozen=True, slots=True)
class Tried:
    """A recipient, and why it did not accept a message; empty when it did."""

    recipient: str
    problem: str

    columns: ClassVar[Columns] = (
        Column("recipient"),
        Column("result", lambda tried: tried.problem or "accepted", is_state=True),
    )

    @property
    def failed(self) -> bool:
        """Whether it did not accept the message."""
        return bool(self.problem)


@dataclass(frozen=True, slots=True)
class Alerts:
    """Notify people of captured errors, and of actors that were disabled."""

    errors: Errors
    recipients: Recipients
    queue: Queue
    settings: Settings

    @task(NOTIFY)
    async def notify(self, tx: Transaction) -> int:
        """Make a message for each recipient of each new or regressed group of errors, or a digest of many.

        Return the number of groups. Exactly once: the messages are enqueued in the transaction.
        """
        due = await self.errors.take_due(tx)
        for title, body in texts(due, self.settings.environment):
            await self._enqueue(tx, title, body)
        return len(due)

    @subscriber("platform.notify_of_disabled_actor", ActorDisabled)
    async def actor_disabled(self, tx: Transaction, event: ActorDisabled) -> None:
        """Notify people that an actor was disabled: it may be an attack, or the answer to one.

        Exactly once: the messages are enqueued in the transaction.
        """
        title = f"[{self.settings.environment}] an actor was disabled"
        await self._enqueue(tx, title, f"actor {event.actor_id}: its sessions and keys have ended")

    @task(SEND_MESSAGE)
    async def send(self, message: Message) -> None:
        """Send one message to one recipient.

        Raises Unavailable to try again, NeverRetry when the recipient was removed from the settings.
        """
        try:
            await self.recipients.send(message)
        except NotFound as error:
            raise NeverRetry(str(error)) from None

    @change("platform.try_recipients", command="errors notify-test")
    async def attempt(self) -> Page[Tried]:
        """Send a test message to everybody who is notified of errors (sentinel.notify_urls). Not safe to repeat.

        Raises Misconfigured when there is nobody.
        """
        names = self.recipients.names()
        if not names:
            raise Misconfigured("nobody is told of errors; set sentinel.notify_urls")
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
