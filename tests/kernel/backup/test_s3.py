"""S3 behind a network and a server that fail: transfers go on, or end with one line that says what to do."""

import math
import re
import uuid
from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr

from app.kernel.backup import Target, TargetUnavailable
from app.kernel.backup.targets import s3
from app.kernel.errors import Conflict, NotFound
from tests.kernel.backup.conftest import client_of, s3_of
from tests.support.faulty import Fault, FaultyProxy, Request, faulty_proxy
from tests.support.seaweed import READER, READER_SECRET, SECRET, Seaweed

PART = 5 * 1024 * 1024
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Fail after fewer attempts, and do not wait long between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setattr(s3, "_PART_BYTES", PART)
        patch.setattr(s3, "_ATTEMPTS", 3)
        patch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
        yield patch


@pytest.fixture(scope="module")
def faulty(seaweed: Seaweed) -> Iterator[FaultyProxy]:
    with faulty_proxy(seaweed.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def client(seaweed: Seaweed, faulty: FaultyProxy) -> object:
    return client_of(s3_of(seaweed, s3_endpoint=faulty.endpoint))


@pytest.fixture
def proxy(faulty: FaultyProxy) -> Iterator[FaultyProxy]:
    faulty.requests.clear()
    yield faulty
    faulty.rule = lambda request: None


@pytest.fixture
def target(seaweed: Seaweed, client: object, proxy: FaultyProxy) -> Target:
    return s3.S3(client, seaweed.bucket, f"{uuid.uuid4().hex}/")


def content(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


def pieces(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1024 * 1024] for at in range(0, len(data), 1024 * 1024))


def first_of_each(fault: Fault, times: int = 1) -> Callable[[Request], Fault | None]:
    """Return a rule that spoils the first attempts of every request."""
    seen: dict[str, int] = {}

    def rule(request: Request) -> Fault | None:
        what = f"{request.method} {request.path} {request.headers.get('Range')}"
        seen[what] = seen.get(what, 0) + 1
        return fault if seen[what] <= times else None

    return rule


@pytest.mark.parametrize(
    "fault",
    [
        Fault(503, body=SLOW_DOWN),
        Fault(500),
        Fault(resets_before=True),
        Fault(loses_answer=True),
    ],
    ids=["503", "500", "reset while sending", "lost answer"],
)
@pytest.mark.parametrize("size", [1024, 2 * PART + 1024], ids=["small", "parts"])
def test_every_request_that_fails_once_is_repeated(
    seaweed: Seaweed, target: Target, proxy: FaultyProxy, fault: Fault, size: int
) -> None:
    proxy.rule = first_of_each(fault)
    data = content(size)
    assert target.put("a", pieces(data)) == size
    assert b"".join(target.get("a")) == data
    with pytest.raises(Conflict):
        target.put("a", [b"x"])
    assert [stored.size_bytes for stored in target.list()] == [size]
    target.clean(0)  # an upload that began when the answer was lost
    assert target.clean(0) == 0
    target.delete(["a"])
    assert list(target.list()) == []


def test_a_download_that_is_cut_off_goes_on_where_it_was(target: Target, proxy: FaultyProxy) -> None:
    data = content(PART)
    target.put("a", [data])
    cut = 1024 * 1024 + 77
    proxy.rule = lambda request: Fault(cuts_after=cut) if request.method == "GET" else None
    proxy.requests.clear()
    assert b"".join(target.get("a")) == data
    ranges = [request.headers.get("Range") for request in proxy.requests]
    assert ranges[0] is None
    assert len(ranges) >= 5
    assert all(later and re.fullmatch(r"bytes=\d+-", later) for later in ranges[1:])
    assert {request.headers.get("If-Match") for request in proxy.requests[1:]} != {None}


@pytest.mark.parametrize("outage", [Fault(503, body=SLOW_DOWN), Fault(resets_before=True)], ids=["503", "reset"])
def test_a_download_goes_on_after_an_outage_and_ends_after_a_long_one(
    target: Target, proxy: FaultyProxy, quick: pytest.MonkeyPatch, outage: Fault
) -> None:
    data = content(PART)
    target.put("a", [data])

    def lasting(requests: float) -> Callable[[Request], Fault | None]:
        proxy.requests.clear()
        return lambda request: (
            Fault(cuts_after=PART // 2) if request.number == 1 else outage if request.number <= requests else None
        )

    proxy.rule = lasting(1 + 2 * 3)  # each attempt is one of three requests
    assert b"".join(target.get("a")) == data
    proxy.rule = lasting(math.inf)
    with quick.context() as patch:
        patch.setattr(s3, "_PATIENCE_S", 1.0)
        with pytest.raises(TargetUnavailable, match=f"the target {target.label}: ") as caught:
            b"".join(target.get("a"))
    assert "\n" not in str(caught.value)
    assert {request.headers.get("Range") is None for request in proxy.requests[1:]} == {False}


def test_a_download_that_never_goes_on_ends(target: Target, proxy: FaultyProxy, quick: pytest.MonkeyPatch) -> None:
    target.put("a", [content(PART)])
    proxy.rule = lambda request: Fault(cuts_after=0 if request.headers.get("Range") else PART // 2)
    with quick.context() as patch:
        patch.setattr(s3, "_PATIENCE_S", 1.0)
        with pytest.raises(TargetUnavailable, match="it closed the connection"):
            b"".join(target.get("a"))


@pytest.mark.parametrize("fault", [Fault(403), Fault(404), Fault(200, body=b"<html>")], ids=["403", "404", "a page"])
def test_a_download_does_not_wait_for_what_is_no_outage(target: Target, proxy: FaultyProxy, fault: Fault) -> None:
    target.put("a", [content(PART)])
    proxy.requests.clear()
    proxy.rule = lambda request: fault if request.headers.get("Range") else Fault(cuts_after=PART // 2)
    with pytest.raises((TargetUnavailable, NotFound)):
        b"".join(target.get("a"))
    assert len(proxy.requests) == 2


@pytest.mark.parametrize("is_checked", [True, False], ids=["checked by the storage", "not checked"])
def test_an_object_that_is_replaced_during_a_download_is_not_mixed(
    target: Target, proxy: FaultyProxy, is_checked: bool
) -> None:
    target.put("a", [b"a" * PART])
    cut, other = Fault(cuts_after=PART // 2), Fault(206, headers={"ETag": '"other"'}, body=b"b" * (PART // 2))
    proxy.rule = lambda request: cut if not request.headers.get("Range") else None if is_checked else other
    chunks = target.get("a")
    begin = next(chunks)
    proxy.rule, rule = lambda request: None, proxy.rule
    target.put("a", [b"b" * PART], replace=True)
    proxy.rule = rule
    with pytest.raises(TargetUnavailable, match="the object was replaced meanwhile"):
        b"".join([begin, *chunks])


def test_an_upload_that_keeps_failing_is_aborted(seaweed: Seaweed, target: Target, proxy: FaultyProxy) -> None:
    proxy.rule = lambda request: Fault(503, body=SLOW_DOWN) if "partNumber=2" in request.path else None
    with pytest.raises(TargetUnavailable, match=f"the target {target.label}: it answers UploadPart with SlowDown"):
        target.put("a", pieces(content(4 * PART)))
    proxy.rule = lambda request: None
    assert list(target.list()) == []
    assert target.clean(0) == 0
    assert any(request.method == "DELETE" for request in proxy.requests)


def test_what_was_not_aborted_is_cleaned_once_it_is_old(target: Target, proxy: FaultyProxy) -> None:
    lost = {"DELETE"}
    proxy.rule = lambda request: Fault(503, body=SLOW_DOWN) if request.method in lost else None
    with pytest.raises(RuntimeError, match="the source fails"):
        target.put("a", failing())
    lost.clear()
    assert target.clean(60) == 0
    assert target.clean(0) == 1
    assert target.clean(0) == 0


def failing() -> Iterator[bytes]:
    yield bytes(3 * PART)
    raise RuntimeError("the source fails")


def test_an_upload_reads_its_source_at_most_a_few_parts_ahead(target: Target, proxy: FaultyProxy) -> None:
    proxy.rule = lambda request: Fault(delay_s=0.05) if "partNumber" in request.path else None
    ahead: list[int] = []

    def source() -> Iterator[bytes]:
        for number in range(8):
            arrived = sum(1 for request in proxy.requests if "partNumber" in request.path)
            ahead.append(number - arrived)
            yield bytes(PART)

    assert target.put("a", source()) == 8 * PART
    assert max(ahead) <= 4  # those that are being sent, and the first two


def test_storage_that_cannot_refuse_to_overwrite_is_asked_first(target: Target, proxy: FaultyProxy) -> None:
    not_known = b"<Error><Code>NotImplemented</Code><Message>A header</Message></Error>"
    proxy.rule = lambda request: Fault(501, body=not_known) if request.headers.get("If-None-Match") else None
    target.put("a", [b"a"])
    target.put("b", pieces(content(2 * PART)))
    for name in "ab":
        with pytest.raises(Conflict):
            target.put(name, [b"x"])
    assert b"".join(target.get("a")) == b"a"


def test_storage_that_cannot_delete_in_batches_is_asked_one_by_one(target: Target, proxy: FaultyProxy) -> None:
    not_known = b"<Error><Code>NotImplemented</Code><Message>DeleteObjects</Message></Error>"
    proxy.rule = lambda request: Fault(501, body=not_known) if request.method == "POST" else None
    target.put("a", [b"a"])
    target.delete(["a", "b"])
    assert list(target.list()) == []


def test_a_server_that_is_slow_is_given_up(
    seaweed: Seaweed, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_READ_S", 0.1)
    target = s3_of(seaweed, s3_endpoint=proxy.endpoint)
    proxy.rule = lambda request: Fault(delay_s=0.5)
    for use in uses(target):
        assert "it does not answer in time: try again later" in refused(use)


def uses(target: Target) -> tuple[Callable[[], object], ...]:
    return (
        lambda: target.put("a/b", [b"x"]),
        lambda: b"".join(target.get("a/b")),
        lambda: list(target.list()),
        lambda: target.delete(["a/b"]),
        lambda: target.clean(0),
    )


def refused(use: Callable[[], object]) -> str:
    with pytest.raises(TargetUnavailable) as caught:
        use()
    line = str(caught.value)
    assert "\n" not in line
    assert SECRET not in line
    assert "s3://" in line
    return line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"s3_secret_key": SecretStr("wrong")}, "backup.s3_secret_key|check the credentials"),
        ({"s3_access_key": "nobody"}, "check backup.s3_access_key|check the credentials"),
        ({"s3_endpoint": "http://127.0.0.1:1"}, "it cannot be reached: check backup.s3_endpoint"),
    ],
    ids=["secret", "key", "address"],
)
def test_wrong_settings_are_named(seaweed: Seaweed, changes: dict[str, object], said: str) -> None:
    for use in uses(s3_of(seaweed, **changes)):
        assert re.search(said, refused(use))


def test_a_proxy_that_answers_itself_is_no_storage(target: Target, proxy: FaultyProxy) -> None:
    proxy.rule = lambda request: None if request.method == "HEAD" else Fault(200, body=b"<html>Sign in</html>")
    parts = [bytes(PART), bytes(PART)]
    for use in (lambda: target.put("a/b", parts), *uses(target)[1:3]):
        assert "it does not answer as S3 does: check backup.s3_endpoint and proxies" in refused(use)


def test_what_a_key_may_not_do_is_named(seaweed: Seaweed) -> None:
    reader = s3_of(seaweed, s3_access_key=READER, s3_secret_key=SecretStr(READER_SECRET))
    assert list(reader.list()) == []
    with pytest.raises(NotFound):
        b"".join(reader.get("a"))
    assert "access denied to PutObject: allow the access key to" in refused(lambda: reader.put("a", [b"x"]))
    assert "1 objects are not deleted, such as" in (line := refused(lambda: reader.delete(["a"])))
    assert "access denied to DeleteObjects" in line


def test_a_bucket_that_does_not_exist_is_named(seaweed: Seaweed) -> None:
    name = f"none-{uuid.uuid4().hex}"
    reader = s3_of(seaweed, target=f"s3://{name}", s3_access_key=READER, s3_secret_key=SecretStr(READER_SECRET))
    said = f"there is no bucket {name}: create it, or correct backup.target or backup.s3_endpoint (NoSuchBucket)"
    assert said in refused(lambda: list(reader.list()))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Fault(400, body=b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-1</Region></Error>"),
            "is in another region: set backup.s3_region to eu-1",
        ),
        (Fault(507, body=b"<Error><Code>InsufficientStorage</Code></Error>"), "it is full, or over its quota"),
        (Fault(403, body=b"<Error><Code>RequestTimeTooSkewed</Code></Error>"), "the clock of this machine is wrong"),
        (Fault(200, body=b"a page of a proxy"), "it"),
        (Fault(404, body=b"<html>nginx</html>"), "ListObjectsV2"),
    ],
    ids=["region", "full", "clock", "no S3", "no page"],
)
def test_what_the_storage_says_is_one_line(target: Target, proxy: FaultyProxy, fault: Fault, said: str) -> None:
    proxy.rule = lambda request: fault
    assert said in refused(lambda: list(target.list()))
