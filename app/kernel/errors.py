"""Six kinds of refusal. A module subclasses one with a `code` and a `title`; adapters translate the kind, once."""

from collections.abc import Callable, Mapping
from typing import ClassVar


class Refusal(Exception):
    """The request was understood and will not be carried out.

    `code` is what programs compare, `title` what people read, and `str(error)` the detail. Both are declared together.
    """

    code: ClassVar[str] = "REFUSED"
    title: ClassVar[str] = "The request was refused"

    def __init_subclass__(cls) -> None:
        if ("code" in vars(cls)) != ("title" in vars(cls)):
            raise TypeError(f"{cls.__qualname__}: declare code and title")

    def __str__(self) -> str:
        return super().__str__() or self.title


class Invalid(Refusal):
    """The input is invalid.

    `fields` names what is wrong: pairs of field and message. It never holds the value.
    """

    code = "INVALID_INPUT"
    title = "The input is invalid"

    def __init__(self, detail: str = "", fields: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(detail)
        self.fields = fields


class Unauthenticated(Refusal):
    """The caller is not known."""

    code = "INVALID_TOKEN"
    title = "Authentication failed"


class Denied(Refusal):
    """The caller may not do this."""

    code = "PERMISSION_DENIED"
    title = "Permission denied"


class NotFound(Refusal):
    """What is named does not exist."""

    code = "NOT_FOUND"
    title = "Not found"


class Conflict(Refusal):
    """The current state does not allow it."""

    code = "CONFLICT"
    title = "The current state does not allow this"


class Unavailable(Refusal):
    """A dependency is unavailable; the same request may succeed later.

    `retry_after_s` is when to try again, in whole seconds.
    """

    code = "NOT_READY"
    title = "A dependency is unavailable; try again later"

    def __init__(self, detail: str = "", retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class RateLimited(Unavailable):
    """There were too many attempts in a period of time."""

    code = "RATE_LIMITED"
    title = "Too many attempts"


Constraints = Mapping[str, Callable[[], type[Refusal]]]
"""What the violation of `schema.constraint` is refused with, whoever loses a race for it."""
