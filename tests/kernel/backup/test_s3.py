"""S3 behind a network and a server that fail: transfers go on, or end with one line that says what to do."""

import math
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

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
        patch.setattr(s3, "_PATIENCE_S", 1.0)
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


OUTAGES = {
    "503": Fault(503, body=SLOW_DOWN),
    "429": Fault(429),
    "reset": Fault(resets_before=True),
    "a short answer": Fault(cuts_after=0),
}


@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES)
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

    with quick.context() as patch:
        patch.setattr(s3, "_PATIENCE_S", 60.0)
        proxy.rule = lasting(3 if outage.cuts_after == 0 else 1 + 2 * 3)  # three requests are one attempt, or one is
        assert b"".join(target.get("a")) == data
    proxy.rule = lasting(math.inf)
    with pytest.raises(TargetUnavailable, match=f"the target {target.label}: ") as caught:
        b"".join(target.get("a"))
    assert "\n" not in str(caught.value)
    assert {request.headers.get("Range") is None for request in proxy.requests[1:]} == {False}


def test_a_download_that_crawls_ends(target: Target, proxy: FaultyProxy) -> None:
    target.put("a", [content(PART)])
    proxy.rule = lambda request: Fault(cuts_after=1 if request.headers.get("Range") else PART // 2)
    with pytest.raises(TargetUnavailable, match="it closed the connection"):
        b"".join(target.get("a"))


HALF, TAG = PART // 2, {"ETag": "TAG"}
STRANGE = {
    "403": Fault(403),
    "404": Fault(404),
    "a page": Fault(200, body=b"<html>"),
    "the range before": Fault(206, TAG | {"Content-Range": f"bytes 0-{HALF - 1}/{PART}"}, bytes(HALF)),
    "another size": Fault(206, TAG | {"Content-Range": f"bytes {HALF}-{2 * PART}/{2 * PART + 1}"}, bytes(HALF)),
    "too much": Fault(206, TAG | {"Content-Range": f"bytes {HALF}-{PART - 1}/{PART}"}, bytes(HALF + 1)),
    "no tag": Fault(206, {"Content-Range": f"bytes {HALF}-{PART - 1}/{PART}"}, bytes(HALF)),
    "a redirect": Fault(307, {"Location": "http://127.0.0.1:1/"}),
}


@pytest.mark.parametrize("fault", STRANGE.values(), ids=STRANGE)
def test_a_download_ends_at_once_with_an_answer_that_is_no_outage(
    seaweed: Seaweed, target: Target, proxy: FaultyProxy, fault: Fault
) -> None:
    target.put("a", [content(PART)])
    answer = client_of(s3_of(seaweed)).head_object(Bucket=seaweed.bucket, Key=f"{target.label.split('/', 3)[3]}/a")
    headers = {name: answer["ETag"] if value == "TAG" else value for name, value in fault.headers.items()}
    proxy.rule = lambda request: (
        replace(fault, headers=headers) if request.headers.get("Range") else Fault(cuts_after=HALF)
    )
    with pytest.raises((TargetUnavailable, NotFound)) as caught:
        b"".join(target.get("a"))
    assert "\n" not in str(caught.value)


def test_an_upload_goes_on_after_an_outage(target: Target, proxy: FaultyProxy, quick: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()

    def rule(request: Request) -> Fault | None:
        what = "part" if "partNumber=2" in request.path else "end" if request.method == "POST" else ""
        is_end = what == "end" and "uploads" not in request.path
        seen[what] += 1
        return Fault(503, body=SLOW_DOWN) if (what == "part" or is_end) and seen[what] <= 7 else None

    proxy.rule = rule
    data = content(3 * PART)
    with quick.context() as patch:
        patch.setattr(s3, "_PATIENCE_S", 60.0)
        assert target.put("a", pieces(data)) == len(data)
    assert (seen["part"], seen["end"] > 7) == (8, True)
    assert b"".join(target.get("a")) == data


@pytest.mark.parametrize("status", [301, 307])
def test_a_target_that_redirects_is_named_in_a_line(target: Target, proxy: FaultyProxy, status: int) -> None:
    proxy.rule = lambda _: Fault(status, {"Location": proxy.endpoint})
    with pytest.raises(TargetUnavailable, match=r"backup\.s3_(endpoint|region)") as caught:
        list(target.list())
    assert "\n" not in str(caught.value)


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
