"""Lines of the console format."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.kernel.config import LoggerSettings
from app.kernel.telemetry import logs
from app.kernel.telemetry.console import WIDTH, few, fitted

LINE = "{} {} {} in {:.1f} ms"
ID = "0193f7a0-0000-7000-8000-00001a2b3c4d"


def of_request(method: str, path: str, status: int, took_ms: float, room: int = 79) -> str:
    return fitted(lambda texts: LINE.format(*texts), (method, path, status, took_ms), room)


def test_a_path_of_usual_length_stays_whole_but_for_ids() -> None:
    assert of_request("GET", "/platform/v1/processes", 200, 3.14) == "GET /platform/v1/processes 200 in 3.1 ms"
    shortened = of_request("PUT", f"/auth/v1/actors/{ID}/permissions", 204, 12.3)
    assert shortened == "PUT /auth/v1/actors/\N{HORIZONTAL ELLIPSIS}1a2b3c4d/permissions 204 in 12.3 ms"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.text(min_size=1, max_size=256),
    st.text(max_size=256),
    st.integers(100, 599),
    st.floats(0, 86_400_000),
)
def test_a_line_fits_and_has_status_and_duration(method: str, path: str, status: int, took_ms: float) -> None:
    line = of_request(method, path, status, took_ms)
    assert len(line) <= 79
    assert line.endswith(f" {status} in {took_ms:.1f} ms")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(min_size=1), st.text()), st.integers(-5, 120))
def test_fields_are_shown_while_there_is_room(about: dict[str, str], room: int) -> None:
    found = few(about, room)
    assert len(found) <= max(0, room)
    assert found == "" or found.startswith("  ")


def test_a_field_is_whole_or_absent() -> None:
    about = {"request_id": ID, "operation": "auth.get_me", "actor_id": ID}
    assert few(about, 100).split() == [
        "request_id=\N{HORIZONTAL ELLIPSIS}1a2b3c4d",
        "operation=auth.get_me",
        "actor_id=\N{HORIZONTAL ELLIPSIS}1a2b3c4d",
    ]
    assert few(about, 30).split() == ["request_id=\N{HORIZONTAL ELLIPSIS}1a2b3c4d"]


@pytest.mark.parametrize("level", ["INFO", "ERROR"])
def test_the_line_of_a_request_is_at_most_100_columns_wide(tmp_path: Path, level: logs.Level) -> None:
    log = tmp_path / "log"
    output = logs.configure(LoggerSettings("info", "console", str(log)), "test")
    try:
        logs.new_context(request_id=ID, operation="platform.list_processes", actor_id=ID)
        logs.ended(level, LINE, "DELETE", f"/auth/v1/actors/{ID}/roles", 204, 1234.5, fields={"bytes": 0})
        logs.ended(level, LINE, "GET", "/" + "x" * 255, 404, 0.5)
        logs.ended(level, LINE, "GET", "/\n\x1b[31m", 404, 0.5)
    finally:
        output.close()
        logs.new_context()
        logs.configure(LoggerSettings("info", "json", str(tmp_path / "other")), "test")
    lines = log.read_text().splitlines()
    assert [len(line) <= WIDTH for line in lines] == [True] * 3
    assert re.fullmatch(rf"\d\d:\d\d:\d\d\.\d{{3}} {level:<8} DELETE \S+ 204 in 1234\.5 ms  request_id=\S+", lines[0])
    assert "404 in 0.5 ms" in lines[1]
    assert "GET /\\n\\x1b[31m 404" in lines[2]
