"""Six kinds of refusal. A module subclasses one with a `code`; adapters translate the kind, once, at the edge."""

from typing import ClassVar


class Refusal(Exception):
    """The request was understood and will not be carried out.

    `code` is what programs compare; the docstring's first line is the title people read; `str(error)` is the detail.
    """

    code: ClassVar[str] = "REFUSED"

    @classmethod
    def title(cls) -> str:
        """The first line of the docstring, without its full stop."""
        return (cls.__doc__ or cls.__name__).strip().splitlines()[0].rstrip(".")

    def __str__(self) -> str:
        return super().__str__() or self.title()


class Invalid(Refusal):
    """The input is invalid.

    `fields` names what is wrong: pairs of field and message. It never holds the value.
    """

    code = "INVALID_INPUT"

    def __init__(self, detail: str = "", fields: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(detail)
        self.fields = fields


class Unauthenticated(Refusal):
    """Who is asking is not known."""

    code = "INVALID_TOKEN"


class Denied(Refusal):
    """Who is asking may not do this."""

    code = "PERMISSION_DENIED"


class NotFound(Refusal):
    """There is no such thing."""

    code = "NOT_FOUND"


class Conflict(Refusal):
    """The present state does not allow it."""

    code = "CONFLICT"


class Unavailable(Refusal):
    """Something this depends on is not available; the same request may succeed later.

    `retry_after_s` is when to try again, in whole seconds.
    """

    code = "NOT_READY"

    def __init__(self, detail: str = "", retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class RateLimited(Unavailable):
    """There were too many attempts."""

    code = "RATE_LIMITED"
