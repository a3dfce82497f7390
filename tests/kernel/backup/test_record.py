"""What is recorded of WAL that is missing, and the backup that is requested."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.kernel.backup import Backup
from app.kernel.backup.catalogue import Catalogue, wal_names
from app.kernel.backup.primary import Report
from app.kernel.backup.record import Record
from app.kernel.backup.sealed import Keys
from app.kernel.backup.targets.folder import Folder
from app.kernel.backup.timelines import Fork, Stretch, lsn_text, segment_name, way
from app.kernel.backup.wal import Gap, WalArchive
from app.kernel.errors import Unavailable
from tests.kernel.backup.conftest import settings_of

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MIB = 1024 * 1024
KEYS = Keys("a key of forty characters that nobody uses")


@dataclass
class Server:
    """What a record asks a server for."""

    stretches: tuple[Stretch, ...] = way(1, ())
    cluster: str = "1"
    reached: int = 0

    def recorded(self) -> Report:
        return Report(1, self.reached, NOON)


@dataclass
class Case:
    """A target, and a record that counts the requested backups."""

    target: Folder
    server: Server = field(default_factory=Server)
    requests: int = 0
    is_failing: bool = False

    def __post_init__(self) -> None:
        archive = WalArchive(self.target, KEYS, "1", MIB)
        self.record = Record(self.server, archive, Catalogue(self.target, KEYS), settings_of(), self.request)  # type: ignore[arg-type]

    def request(self) -> None:
        if self.is_failing:
            raise Unavailable("the database is unavailable")
        self.requests += 1

    def backup(self, id_: str, lsn: int, timeline: int = 1) -> None:
        text = lsn_text(lsn)
        made = Backup(id_, "1", "builtin", NOON, NOON, timeline, text, text, 180004, "1", "", "app", 1, 1)
        Catalogue(self.target, KEYS).add(made)

    def store(self, *numbers: int, timeline: int = 1) -> None:
        for number in numbers:
            [name] = wal_names(KEYS, "1", segment_name(timeline, number * MIB, MIB))
            self.target.put(name, [b"not read"])

    def check(self) -> None:
        self.record._check_at = 0.0
        self.record.check()


@pytest.fixture
def case(tmp_path: Path) -> Case:
    (tmp_path / "target").mkdir()
    return Case(Folder(tmp_path / "target"))


def test_one_backup_is_requested_for_a_gap_whenever_it_is_seen(case: Case) -> None:
    case.backup("a", 2 * MIB + 500)
    case.store(2, 3)
    case.record.miss(Gap(1, 4 * MIB + 100, 9 * MIB))  # what the server had no more, from where WAL was stored
    case.check()  # before anything after it is stored
    case.store(9, 10)
    case.record.stored(1, 11 * MIB)
    case.check()
    assert case.requests == 1
    case.store(12)
    case.check()
    assert (case.requests, case.record.gap) == (2, Gap(1, 11 * MIB, 12 * MIB))
    case.backup("b", 13 * MIB)
    case.check()
    assert (case.requests, case.record.gap) == (2, None)


def test_a_request_that_fails_is_made_again_and_wal_goes_on(case: Case) -> None:
    case.is_failing = True
    case.record.miss(Gap(1, 4 * MIB, 9 * MIB))
    case.check()
    case.is_failing = False
    case.check()
    case.check()
    assert case.requests == 1


def test_a_backup_of_a_branch_that_was_left_is_no_gap(case: Case) -> None:
    case.server.stretches = way(2, (Fork(1, 5 * MIB),))
    case.backup("a", 2 * MIB)
    case.backup("left", 8 * MIB)
    case.store(2, 3, 4, 5, 6, 7, 8)
    case.store(5, 6, timeline=2)
    case.check()
    assert case.record.gap is None
    Catalogue(case.target, KEYS).remove(next(each for each in Catalogue(case.target, KEYS).backups() if each.id == "a"))
    case.check()
    assert case.requests == 1  # no other backup leads here
    case.backup("b", 6 * MIB, timeline=2)
    case.check()
    assert case.record.gap is None
