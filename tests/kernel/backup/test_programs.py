"""Which programs of PostgreSQL serve which server."""

from pathlib import Path

import pytest

from app.kernel.backup.programs import programs_for
from app.kernel.config import Misconfigured
from tests.kernel.backup.conftest import settings_of


def folder(place: Path, version: int) -> Path:
    """Make a folder of programs that say that they are of a version; 0 does not run."""
    made = place / str(version)
    made.mkdir()
    for name in ("postgres", "pg_basebackup"):
        (made / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}.4'\n" if version else "broken")
        (made / name).chmod(0o755)
    return made


@pytest.mark.parametrize(
    ("server", "exact", "there", "found"),
    [
        (180_004, False, [15, 18, 19], 18),
        (180_004, False, [15, 19], 19),
        (180_004, False, [0, 15], None),
        (180_004, True, [15, 18, 19], 18),
        (180_004, True, [15, 19], None),
        (150_018, True, [15, 18], 15),
        (150_018, False, [], None),
    ],
)
def test_a_client_may_be_newer_than_the_server_and_a_data_folder_needs_its_own_version(
    server: int, exact: bool, there: list[int], found: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in there:
        folder(tmp_path, version)
    monkeypatch.setattr("app.kernel.backup.programs._PLACES", (f"{tmp_path}/*",))
    monkeypatch.setenv("PATH", "/nowhere")
    if found is not None:
        assert programs_for(server, settings_of(), None, exact=exact) == tmp_path / str(found)
        return
    package = f"postgresql-{server // 10_000}" if exact else f"postgresql-client-{server // 10_000}"
    with pytest.raises(Misconfigured, match=rf"install {package}$"):
        programs_for(server, settings_of(), None, exact=exact)


def test_a_folder_that_is_set_is_the_only_one(tmp_path: Path) -> None:
    settings = settings_of(programs=str(folder(tmp_path, 15)))
    assert programs_for(150_000, settings, None, exact=True) == tmp_path / "15"
    with pytest.raises(Misconfigured, match=r"only pg_basebackup of version 15 in .*/15 \(backup.programs\)"):
        programs_for(180_000, settings, folder(tmp_path, 18), exact=False)
