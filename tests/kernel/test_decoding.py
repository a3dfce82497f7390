"""How values are written: in queries, paths, forms and JSON, and on the command line."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from annotated_types import Interval, Len
from hypothesis import given
from hypothesis import strategies as st

from app.kernel.decoding import Decoder
from app.kernel.errors import Invalid
from app.kernel.fields import Pattern

ID = "01a20304-51b9-712d-b52c-fd40df0b43e3"


@dataclass(frozen=True)
class Part:
    name: str
    count: int = 1


@dataclass(frozen=True)
class Wanted:
    limit: Annotated[int, Interval(ge=-5, le=1000)] = 20
    ratio: float = 1.0
    all: bool = False
    to: datetime | None = None
    id: UUID | None = None
    kind: Literal["a", "b"] | None = None
    code: Annotated[str, Pattern("^[a-z]+$")] | None = None
    ids: list[UUID] | None = None
    part: Part | None = None


@dataclass(frozen=True)
class Call:
    url: str
    arguments: "list[Call]" = field(default_factory=list)


DECODER = Decoder[Wanted](Wanted)
LIST = Decoder[list[Part]](Annotated[list[Part], Len(1, 2)])


def from_text(**values: str) -> Wanted:
    return DECODER.text(values)


def from_json(**values: Any) -> Wanted:
    return DECODER.json(json.loads(json.dumps(values)))


def refused(read: Any, **values: Any) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as caught:
        read(**values)
    assert caught.value.code == "INVALID_INPUT"
    return list(caught.value.fields)


NOT_TIMES = [
    "",
    "0.5",
    "0",
    "1763805600",
    "-1",
    "1e9",
    "now",
    "2026-11-22",
    "2026-11-22T10:00:00",
    "2026-11-22 10:00:00Z",
    "2026-11-22T10:00Z",
    "2026-11-22T10Z",
    "2026-11-22T24:00:00Z",
    "2026-11-22T10:60:00Z",
    "2026-11-22T23:59:60Z",
    "2026-13-22T10:00:00Z",
    "2026-02-30T10:00:00Z",
    "2026-11-22T10:00:00+24:00",
    "2026-11-22T10:00:00+0100",
    "2026-11-22T10:00:00+01",
    "2026-11-22T10:00:00 01:00",
    "2026-11-22T10:00:00 Z",
    "2026-11-22T10:00:00.Z",
    "2026-11-22T10:00:00,5Z",
    " 2026-11-22T10:00:00Z",
    "2026-11-22T10:00:00Z ",
    "2026-11-22T10:00:00Z\n",
    "20261122T100000Z",
    "+2026-11-22T10:00:00Z",
    "0000-11-22T10:00:00Z",
    "\u0662026-11-22T10:00:00Z",
]
TIMES = {
    "2026-11-22T10:00:00Z": datetime(2026, 11, 22, 10, tzinfo=UTC),
    "2026-11-22t10:00:00z": datetime(2026, 11, 22, 10, tzinfo=UTC),
    "2026-11-22T10:00:00.5Z": datetime(2026, 11, 22, 10, 0, 0, 500_000, tzinfo=UTC),
    "2026-11-22T10:00:00.123456789Z": datetime(2026, 11, 22, 10, 0, 0, 123_456, tzinfo=UTC),
    "2026-11-22T10:00:00+01:00": datetime(2026, 11, 22, 9, tzinfo=UTC),
    "2026-11-22T10:00:00-00:00": datetime(2026, 11, 22, 10, tzinfo=UTC),
    "2024-02-29T00:00:00Z": datetime(2024, 2, 29, tzinfo=UTC),
    "9999-12-31T23:59:59-23:59": datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(-timedelta(hours=23, minutes=59))),
    "0001-01-01T00:00:00+23:59": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=23, minutes=59))),
}
NOT_INTEGERS = [
    "",
    "+5",
    " 5",
    "5 ",
    "5_0",
    "\u0665",
    "\uff15",
    "1e1",
    "5.0",
    "5.",
    "0x5",
    "05",
    "-0",
    "--5",
    "5\n",
    "1001",
    "-6",
    "9" * 30,
]
NOT_NUMBERS = ["", "+1.5", " 1", "1_0.5", "\u0661", "1e3", ".5", "5.", "nan", "inf", "-inf", "Infinity", "0x1p3", "01"]
NOT_TRUTH = [
    "",
    "yes",
    "no",
    "on",
    "off",
    "1",
    "0",
    "t",
    "f",
    "y",
    "n",
    "True",
    "TRUE",
    "False",
    " true",
    "true ",
    "null",
]
NOT_IDS = [
    "",
    "x",
    ID.replace("-", ""),
    f"{{{ID}}}",
    f"urn:uuid:{ID}",
    f" {ID}",
    f"{ID} ",
    f"{ID}\n",
    ID[:-1],
    f"{ID}0",
    ID.replace("f", "g"),
]
NOT_CODES = ["", "A", "a1", "a\n", "\na", "a b"]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("limit", NOT_INTEGERS),
        ("ratio", NOT_NUMBERS),
        ("all", NOT_TRUTH),
        ("to", NOT_TIMES),
        ("id", NOT_IDS),
        ("kind", ["", "A", "c", " a", "a "]),
        ("code", NOT_CODES),
        ("more", ["1"]),
    ],
)
def test_text_that_is_written_another_way_is_refused(field: str, values: list[str]) -> None:
    for value in values:
        assert [name for name, _ in refused(from_text, **{field: value})] == [field], value


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("limit", ["5", 5.5, True, None, 1001, 1001.0, -6, 1e300, [5]]),
        ("ratio", ["1", True, None]),
        ("all", ["true", 1, 0, None]),
        ("to", [*NOT_TIMES, 0, 1763805600, 0.5, True]),
        ("id", [*NOT_IDS, 5]),
        ("code", [*NOT_CODES, 5]),
        ("part", [{}, {"name": "x", "more": 1}, {"name": 5}, {"name": "x", "count": "1"}, [], "x"]),
        ("more", [1]),
    ],
)
def test_json_that_is_written_another_way_is_refused(field: str, values: list[Any]) -> None:
    for value in values:
        (error, *_) = refused(from_json, **{field: value})
        assert error[0].split(".")[0] == field, value


def test_what_is_written_as_documented_is_taken() -> None:
    for text, moment in TIMES.items():
        for found in (from_text(to=text).to, from_json(to=text).to):
            assert found is not None
            assert found - moment == timedelta()
    assert from_text(limit="-5", ratio="-0.25", all="true", id=ID.upper()) == Wanted(-5, -0.25, True, id=UUID(ID))
    assert from_json(limit=5.0, ratio=2, part={"name": "x", "count": 2.0}) == Wanted(5, 2.0, part=Part("x", 2))
    assert DECODER.json(json.loads(f'{{"limit": 1e2, "ids": ["{ID}"]}}')) == Wanted(100, ids=[UUID(ID)])
    assert type(from_json(limit=5.0).limit) is int


def test_an_array_is_taken_with_its_bounds_and_its_items_are_as_strict() -> None:
    assert LIST.json(json.loads('[{"name": "x"}, {"name": "y", "count": 2}]')) == [Part("x"), Part("y", 2)]
    for wrong in (b"[]", b'[{"name": "x"}, {"name": "x"}, {"name": "x"}]', b'{"name": "x"}', b"5", b'[{"name": 5}]'):
        with pytest.raises(Invalid):
            LIST.json(json.loads(wrong))
    with pytest.raises(Invalid) as caught:
        LIST.json(json.loads('[{"name": "x", "more": 1}]'))
    assert [name for name, _ in caught.value.fields] == ["0.more"]


MOMENTS = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.timezones())  # noqa: DTZ001 - they are given zones


def test_an_input_may_be_a_part_of_itself_and_is_as_strict_there() -> None:
    calls = Decoder[list[Call]](list[Call])
    assert calls.json(json.loads('[{"url": "a", "arguments": [{"url": "b"}]}]')) == [Call("a", [Call("b")])]
    with pytest.raises(Invalid) as caught:
        calls.json(json.loads('[{"url": "a", "arguments": [{"url": "b", "more": 1}]}]'))
    assert [name for name, _ in caught.value.fields] == ["0.arguments.0.more"]


@given(st.integers(-5, 1000), st.booleans(), st.uuids(), MOMENTS)
def test_what_a_client_writes_is_what_is_read(limit: int, truth: bool, identifier: UUID, moment: datetime) -> None:
    text = from_text(limit=str(limit), all=json.dumps(truth), id=str(identifier))
    assert text == from_json(limit=limit, all=truth, id=str(identifier)) == Wanted(limit, 1.0, truth, id=identifier)
    offset = moment.utcoffset()
    assert offset is not None
    written = moment.isoformat()
    if offset % timedelta(minutes=1):  # local mean time, which RFC 3339 cannot say
        refused(from_text, to=written)
    else:
        for found in (from_text(to=written).to, from_json(to=written).to):
            assert found is not None
            assert found.astimezone(UTC) == moment.astimezone(UTC)


@given(st.text(alphabet="0123456789+-. _eE\u0661x", max_size=6))
def test_text_is_an_integer_only_as_python_writes_it(text: str) -> None:
    try:
        written = str(int(text)) == text and -5 <= int(text) <= 1000
    except ValueError:
        written = False
    if written:
        assert from_text(limit=text).limit == int(text)
    else:
        refused(from_text, limit=text)


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Shapes:
    colour: Colour
    points: tuple[tuple[int, float], ...] = ()
    names: frozenset[str] = frozenset()
    part: Part | Call | None = None


def test_what_json_writes_in_another_type_is_as_strict() -> None:
    shapes = Decoder[Shapes](Shapes)
    given = {"colour": "red", "points": [[1, 2], [3.0, 0.5]], "names": ["a"], "part": {"url": "u"}}
    assert shapes.json(given) == Shapes(Colour.RED, ((1, 2.0), (3, 0.5)), frozenset({"a"}), Call("u"))
    for field_, wrong in [
        ("colour", "blue"),
        ("points", [["1", 2]]),
        ("points", [[1, True]]),
        ("points", {"1": 2}),
        ("names", [1]),
        ("names", "a"),
        ("part", {"url": "u", "more": 1}),
    ]:
        (error, *_) = refused(lambda **values: shapes.json({**given, **values}), **{field_: wrong})
        assert error[0].split(".")[0] == field_, wrong


def test_an_input_class_stays_as_it_is() -> None:
    @dataclass(frozen=True)
    class Plain:
        part: Part

    before = [dict(vars(kind)) for kind in (Plain, Part)]
    Decoder[Plain](Plain)
    assert [dict(vars(kind)) for kind in (Plain, Part)] == before


class Level(IntEnum):
    LOW = 1


@dataclass(frozen=True)
class Written:
    level: Level = Level.LOW
    size: Literal[1, 2, 3] = 1
    price: Decimal = Decimal(0)
    ids: list[UUID] = field(default_factory=list)
    part: Part = Part("none")
    other: Part | None = None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("level", "1", Level.LOW),
        ("size", "3", 3),
        ("price", "1.50", Decimal("1.50")),
        ("ids", f'["{ID}"]', [UUID(ID)]),
        ("part", '{"name": "a"}', Part("a")),
        ("other", '{"name": "a", "count": 2}', Part("a", 2)),
    ],
)
def test_what_is_no_text_has_a_form_in_texts(name: str, text: str, value: object) -> None:
    assert getattr(Decoder[Written](Written).text({name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("level", "2", ("level", "must be one of 1")),
        ("size", "4", ("size", "must be one of 1, 2 or 3")),
        ("price", "much", ("price", "must be a number, such as 2.5")),
        ("ids", '["x"]', ("ids.0", f"must be a UUID, such as {ID}")),
        ("ids", "[", ("ids", "is not acceptable JSON: Expecting value at position 1")),
        ("part", '{"name": "a", "more": 1}', ("part.more", "is unknown")),
        ("part", "[]", ("part", "must be an object")),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(name: str, text: str, error: tuple[str, str]) -> None:
    assert refused(lambda **values: Decoder[Written](Written).text(values), **{name: text}) == [error]
