"""Six kinds of refusal. A module subclasses one with a `code` and a `title`; the edges translate the kind."""

from collections.abc import Callable, Mapping
from typing import ClassVar


class Refusal(Exception):
    """The request was understood and refused.

    `code` is for programs, `title` for people, `str(error)` is the detail. Subclasses declare both or neither.
    `hint` is what the operator of a command runs next, mostly one command, at most one in a line.
    """

    code: ClassVar[str] = "REFUSED"
    title: ClassVar[str] = "The request was refused"
    hint: str = ""

    def __init__(self, detail: str = "", *, hint: str = "") -> None:
        super().__init__(detail)
        if hint:
            self.hint = hint

    def __init_subclass__(cls) -> None:
        if ("code" in vars(cls)) != ("title" in vars(cls)):
            raise TypeError(f"{cls.__qualname__}: declare code and title")

    def __str__(self) -> str:
        return super().__str__() or self.title


class Invalid(Refusal):
    """The input is invalid.

    `fields` has pairs of field and message, never the value.
    """

    code = "INVALID_INPUT"
    title = "The input is invalid"

    def __init__(self, detail: str = "", fields: tuple[tuple[str, str], ...] = (), *, hint: str = "") -> None:
        super().__init__(detail, hint=hint)
        self.fields = fields


class Unauthenticated(Refusal):
    """The caller is not authenticated."""

    code = "INVALID_TOKEN"
    title = "Authentication failed"


class Denied(Refusal):
    """The caller lacks a permission."""

    code = "PERMISSION_DENIED"
    title = "Permission denied"


class NotFound(Refusal):
    """The resource does not exist."""

    code = "NOT_FOUND"
    title = "Not found"


class Conflict(Refusal):
    """The current state does not allow the action."""

    code = "CONFLICT"
    title = "The current state does not allow this"


class Unavailable(Refusal):
    """A dependency is unavailable. The request may succeed after `retry_after_s` whole seconds."""

    code = "NOT_READY"
    title = "A dependency is unavailable; try again later"

    def __init__(self, detail: str = "", retry_after_s: int = 1, *, hint: str = "") -> None:
        super().__init__(detail, hint=hint)
        self.retry_after_s = retry_after_s


class RateLimited(Unavailable):
    """There were too many attempts in a period of time."""

    code = "RATE_LIMITED"
    title = "Too many attempts"


Constraints = Mapping[str, Callable[[], type[Refusal]]]
"""`schema.constraint` to the refusal of its violation, for whoever loses a race."""
