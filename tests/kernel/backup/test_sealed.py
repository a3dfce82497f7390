"""Sealed objects: what was packed comes back, and nothing else does."""

import itertools
import random
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from app.kernel.backup import BackupInvalid, sealed
from app.kernel.backup.sealed import CHUNK_BYTES, HEADER_BYTES, Keys
from tests.support.project import ROOT

KEY, OTHER = "k" * 32, "o" * 32
NAME = "backups/7/20261127T021500Z-3f2a/base.tar.zst.sealed"
SMALL = 64
TAG = 16


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks so small that every one of their bytes can be tried."""
    monkeypatch.setattr(sealed, "CHUNK_BYTES", SMALL)


def opened(data: bytes, name: str = NAME, keys: Keys | None = None, step: int = 1000) -> bytes:
    pieces = (data[at : at + step] for at in range(0, len(data), step))
    return b"".join((keys or Keys(KEY)).unpack(name, pieces))


def refused(data: bytes, name: str = NAME, keys: Keys | None = None) -> str:
    with pytest.raises(BackupInvalid, match=name) as caught:
        opened(data, name, keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def packed(content: bytes, name: str = NAME, key: str = KEY) -> bytes:
    return b"".join(Keys(key).pack(name, [content]))


@pytest.mark.parametrize("random_bytes", [True, False], ids=["incompressible", "zeros"])
@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 5 * CHUNK_BYTES + 7]
)
def test_content_of_every_size_comes_back(size: int, random_bytes: bool) -> None:
    content = random.randbytes(size) if random_bytes else bytes(size)
    pack = Keys(KEY).pack(NAME, [content[:5], content[5:]])
    stored = b"".join(pack)
    assert (pack.part.stored_bytes, pack.part.size_bytes, pack.part.name) == (len(stored), size, NAME)
    assert pack.part.sha256 == sealed.hashlib.sha256(stored).hexdigest()
    assert opened(stored, step=random.choice([999, CHUNK_BYTES, len(stored)])) == content


def test_an_object_packed_in_this_thread_comes_back() -> None:
    content, threads = random.randbytes(2 * CHUNK_BYTES + 7), set[int]()

    def chunks() -> Iterator[bytes]:
        threads.add(threading.get_ident())
        yield content

    stored = b"".join(Keys(KEY).pack(NAME, chunks(), in_threads=False))
    assert threads == {threading.get_ident()}
    assert opened(stored) == content


@given(pieces=st.lists(st.binary(max_size=100), max_size=12), step=st.integers(1, 300))
def test_content_comes_back_however_it_is_cut(pieces: list[bytes], step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed, "CHUNK_BYTES", SMALL)
        stored = b"".join(Keys(KEY).pack(NAME, pieces))
        assert opened(stored, step=step) == b"".join(pieces)
        assert len(stored) >= HEADER_BYTES + TAG


@given(count=st.integers(0, 5), last=st.integers(1, SMALL))
def test_every_chunk_but_the_last_is_full(count: int, last: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed, "CHUNK_BYTES", SMALL)
        chunks = [bytes(SMALL)] * count + [bytes(last)]
        assert len(b"".join(Keys(KEY).sealed(NAME, chunks))) == HEADER_BYTES + count * (SMALL + TAG) + last + TAG


@pytest.mark.usefixtures("small")
def test_a_flipped_bit_anywhere_is_found() -> None:
    stored = packed(secrets.token_bytes(3 * SMALL + 9))
    assert opened(stored)
    for at in range(len(stored)):
        for bit in range(8) if at < HEADER_BYTES else [random.randrange(8)]:
            damaged = bytearray(stored)
            damaged[at] ^= 1 << bit
            refused(bytes(damaged))


@pytest.mark.usefixtures("small")
def test_what_is_cut_off_or_added_to_is_found() -> None:
    stored = packed(secrets.token_bytes(3 * SMALL + 9))
    for length in range(len(stored)):
        refused(stored[:length])
    for length in (1, TAG, SMALL, SMALL + TAG, 3 * SMALL):
        refused(stored + bytes(length))
        refused(stored + stored[-length:])
    refused(stored + stored)
    full = b"".join(Keys(KEY).sealed(NAME, [b"a" * SMALL, b"b" * SMALL]))  # its last chunk is full
    refused(full[: -SMALL - TAG])


@pytest.mark.usefixtures("small")
def test_chunks_in_another_order_or_of_another_object_are_found() -> None:
    def cut(data: bytes) -> list[bytes]:
        return [data[at : at + SMALL + TAG] for at in range(HEADER_BYTES, len(data), SMALL + TAG)]

    content = secrets.token_bytes(4 * SMALL)
    one, two = packed(content), packed(content)
    header, chunks, others = one[:HEADER_BYTES], cut(one), cut(two)
    assert header + b"".join(chunks) == one
    for order in itertools.permutations(range(len(chunks))):
        if list(order) != sorted(order):
            refused(header + b"".join(chunks[at] for at in order))
    for at in range(len(chunks)):
        refused(header + b"".join(chunks[:at] + chunks[at + 1 :]))
        refused(header + b"".join([*chunks[:at], chunks[at], *chunks[at:]]))
        refused(header + b"".join([*chunks[:at], others[at], *chunks[at + 1 :]]))
    refused(two[:HEADER_BYTES] + b"".join(chunks))


def test_an_object_cannot_take_the_place_of_another() -> None:
    assert opened(packed(b"content", "wal/7/1"), "wal/7/1") == b"content"
    refused(packed(b"content", "wal/7/1"), "wal/7/2")
    refused(b"", "wal/7/2")
    assert "header" in refused(b"no sealed object at all" * 9)


def test_the_former_key_opens_until_it_is_removed() -> None:
    old, new = Keys(KEY), Keys(OTHER, KEY)
    stored = packed(b"content")
    assert opened(stored, keys=new) == b"content"
    assert old.id in refused(stored, keys=Keys(OTHER))
    assert opened(packed(b"new", key=OTHER), keys=new) == b"new"  # the current key seals
    assert new.id in refused(b"".join(new.pack(NAME, [b"x"])), keys=old)
    assert new.id == Keys(OTHER).id != old.id


def test_a_signature_is_of_one_content_and_one_key() -> None:
    signature = Keys(KEY).sign(b"content")
    Keys(OTHER, KEY).check(NAME, b"content", signature)
    for keys, content, given_signature in [
        (Keys(KEY), b"Content", signature),
        (Keys(OTHER), b"content", signature),
        (Keys(KEY), b"content", ""),
        (Keys(KEY), b"content", f"{Keys(KEY).id}:"),
        (Keys(KEY), b"content", f"{Keys(KEY).id}:\u00fc"),
        (Keys(KEY), b"content", signature[:-1]),
        (Keys(KEY, OTHER), b"content", signature.replace(Keys(KEY).id, Keys(OTHER).id)),
    ]:
        with pytest.raises(BackupInvalid, match=NAME):
            keys.check(NAME, content, given_signature)


def test_nothing_secret_or_repeated_stands_in_what_is_stored() -> None:
    content = b"correct horse battery staple" * 100
    one, two = packed(content), packed(content)
    assert KEY.encode() not in one
    assert b"horse" not in one
    assert one[HEADER_BYTES:] != two[HEADER_BYTES:]


def test_content_that_compresses_well_is_unpacked_in_bounded_chunks() -> None:
    size = 200 * CHUNK_BYTES
    stored = b"".join(Keys(KEY).pack(NAME, (bytes(CHUNK_BYTES) for _ in range(200))))
    assert len(stored) < CHUNK_BYTES
    lengths = [len(chunk) for chunk in Keys(KEY).unpack(NAME, [stored])]
    assert sum(lengths) == size
    assert max(lengths) <= CHUNK_BYTES


class Source:
    """Content without an end, or with an error in it, that knows how much of it was read and whether it was closed."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.read, self.is_closed, self._fails_after = 0, False, fails_after
        self.waits = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks()

    def _chunks(self) -> Iterator[bytes]:
        try:
            while self._fails_after is None or self.read < self._fails_after:
                self.read += 1
                if self.read > 40:
                    self.waits.set()
                yield secrets.token_bytes(CHUNK_BYTES // 4)
            raise OSError("the disk of the source is broken")
        finally:
            self.is_closed = True


def no_thread_runs() -> bool:
    return not any(thread.name == "backup-ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("fails_after", [0, 1, 30])
def test_an_error_of_the_source_is_raised_and_no_object_is_complete(fails_after: int) -> None:
    pack = Keys(KEY).pack(NAME, Source(fails_after))
    with pytest.raises(OSError, match="source is broken"):
        b"".join(pack)
    with pytest.raises(RuntimeError):
        _ = pack.part
    assert no_thread_runs()


def test_a_source_is_read_ahead_by_a_bounded_amount_and_closed() -> None:
    source = Source()
    pack = Keys(KEY).pack(NAME, source)
    next(pack), next(pack)
    assert source.waits.wait(10)  # it is read while nobody waits for it
    before = -1
    while before != source.read:
        before = source.read
        threading.Event().wait(0.1)
    assert source.read < 200
    pack.close()
    pack.close()
    assert source.is_closed
    assert no_thread_runs()


def test_unpacking_that_is_given_up_ends_its_thread_and_source() -> None:
    stored = packed(secrets.token_bytes(40 * CHUNK_BYTES))
    is_closed = threading.Event()

    def source() -> Iterator[bytes]:
        try:
            for at in range(0, len(stored), CHUNK_BYTES):
                yield stored[at : at + CHUNK_BYTES]
        finally:
            is_closed.set()

    chunks = Keys(KEY).unpack(NAME, source())
    next(chunks)
    chunks.close()
    assert is_closed.wait(10)
    assert no_thread_runs()


def test_the_documented_script_opens_an_object_without_the_program(tmp_path: Path) -> None:
    code = (ROOT / "docs/backups.md").read_text().partition("```python\n")[2].partition("```")[0]
    (tmp_path / "unseal.py").write_text(code)
    (tmp_path / "key").write_text(f"{KEY}\n")
    for size in (0, 5, CHUNK_BYTES * 3):
        content = secrets.token_bytes(size)
        command = [sys.executable, str(tmp_path / "unseal.py"), str(tmp_path / "key"), NAME]
        done = subprocess.run(command, input=packed(content), stdout=subprocess.PIPE, check=True, timeout=30)
        assert zstandard.ZstdDecompressor().decompressobj().decompress(done.stdout) == content
    full = b"".join(Keys(KEY).sealed(NAME, [bytes(CHUNK_BYTES)]))
    assert subprocess.run(command, input=full, stdout=subprocess.PIPE, check=True, timeout=30).stdout == bytes(
        CHUNK_BYTES
    )
    assert subprocess.run(command, input=full[:-1], capture_output=True, timeout=30, check=False).returncode != 0
