"""A bucket of S3, or of storage that speaks its protocol, as a target of backups."""

import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import chain, islice
from threading import Event
from typing import Any, Final, Self, TypeVar, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, IncompleteReadError, ProfileNotFound
from botocore.parsers import ResponseParserError
from loguru import logger
from urllib3.exceptions import HTTPError

from app.kernel.backup import Stored, TargetUnavailable
from app.kernel.backup.targets import S3_SCHEME, checked, is_name
from app.kernel.backup.targets.s3_errors import code_of, explained, is_outage, meaning
from app.kernel.config.backup import BackupSettings
from app.kernel.config.settings import Misconfigured
from app.kernel.errors import Conflict, NotFound

_PART_BYTES: Final = 32 * 1024 * 1024
"""All parts but the last have one size, as some storages demand."""
_PARTS: Final = 10_000  # what the protocol allows
_AT_ONCE: Final = 3
_ATTEMPTS: Final = 5
_CONNECT_S, _READ_S = 5.0, 30.0
_PATIENCE_S: Final = 60.0
"""A transfer that has begun is continued for so long without progress."""
_PROGRESS_BYTES: Final = 64 * 1024
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")
_LONGEST_PAUSE_S: Final = 5.0
_CHUNK_BYTES: Final = 256 * 1024
_BATCH: Final = 1000  # objects in one request: what the protocol allows
_MARK: Final = "upload"
_MISSING: Final = ("404", "NoSuchKey", "NotFound")
_TAKEN: Final = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchUpload")
_NOT_SUPPORTED: Final = ("NotImplemented", "501", "InvalidArgument", "MethodNotAllowed", "MissingContentMD5")

Parts = list[dict[str, Any]]
_T = TypeVar("_T")


class S3:
    """Objects are uploaded in parts, a bounded number at once, and become visible when the last has arrived."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.label = f"{S3_SCHEME}{bucket}/{prefix}".rstrip("/")
        self._client, self._bucket, self._prefix = client, bucket, prefix
        self._refuses_to_overwrite = True  # until the storage says that it cannot

    @classmethod
    def of(cls, settings: BackupSettings) -> Self:
        """Return the target of the settings. Raises Misconfigured."""
        bucket, _, prefix = settings.target.removeprefix(S3_SCHEME).partition("/")
        endpoint, secret = settings.s3_endpoint or None, settings.s3_secret_key.get_secret_value()
        checksums = "when_required" if endpoint else "when_supported"  # others fail on what AWS added in 2025
        config = Config(
            connect_timeout=_CONNECT_S,
            read_timeout=_READ_S,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
            s3={"addressing_style": "path" if endpoint else "auto"},
        )
        try:
            prefix = f"{checked(prefix.strip('/'))}/" if prefix.strip("/") else ""
            session: Any = cast("Any", boto3).session.Session(
                aws_access_key_id=settings.s3_access_key or None, aws_secret_access_key=secret or None
            )
            region = settings.s3_region or session.region_name or ("us-east-1" if endpoint else None)
            client = session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
        except (BotoCoreError, ProfileNotFound, ValueError) as error:
            raise Misconfigured(f"backup.target: {settings.target}: {error}") from error
        return cls(client, bucket, prefix)

    def put(self, name: str, content: Iterable[bytes], *, replace: bool = False) -> int:
        key, mark = self._key(name), secrets.token_hex(16)
        if not replace and self._mark(key) is not None:
            raise _exists(name)
        parts = _parts(content)
        first = list(islice(parts, 2))
        if len(first) < 2:
            body = first[0] if first else b""
            arguments = {"Bucket": self._bucket, "Key": key, "Body": body, "Metadata": {_MARK: mark}}
            self._publish(name, mark, self._client.put_object, arguments, replace=replace)
            return len(body)
        with self._told():
            metadata = {_MARK: mark}
            answer = self._client.create_multipart_upload(Bucket=self._bucket, Key=key, Metadata=metadata)
            upload = {"Bucket": self._bucket, "Key": key, "UploadId": answer["UploadId"]}
        try:
            size, done = self._upload(upload, chain(first, parts))
            arguments = {**upload, "MultipartUpload": {"Parts": done}}
            complete = self._client.complete_multipart_upload
            _patiently(partial(self._publish, name, mark, complete, arguments, replace=replace), Event())
        except BaseException:
            with suppress(TargetUnavailable), self._told():
                self._client.abort_multipart_upload(**upload)
            raise
        return size

    def get(self, name: str) -> Iterator[bytes]:
        key, tag, at, end, outage = self._key(name), "", 0, -1, _Outage()
        while at != end:
            begun = at
            try:
                with self._told():
                    answer = self._answer(name, key, at, tag)
                    with closing(answer["Body"]) as body:
                        self._check_resumed(answer, at, end, tag)
                        tag, end = answer["ETag"], at + answer["ContentLength"] if end < 0 else end
                        for chunk in body.iter_chunks(_CHUNK_BYTES):
                            at += len(chunk)
                            yield chunk
                    if begun == at != end:
                        raise IncompleteReadError(actual_bytes=0, expected_bytes=end - at)
            except TargetUnavailable as problem:
                if end < 0:
                    raise
                if at - begun >= _PROGRESS_BYTES:
                    outage = _Outage()
                time.sleep(outage.pause_s(problem))

    def list(self, prefix: str = "") -> Iterator[Stored]:
        if prefix:
            checked(prefix.removesuffix("/"))
        with self._told():
            pages = self._pages("list_objects_v2", Bucket=self._bucket, Prefix=self._prefix + prefix)
            found = [
                Stored(one["Key"].removeprefix(self._prefix), one["Size"], one["LastModified"].astimezone(UTC))
                for page in pages
                if not page["IsTruncated"] or page["Contents"]  # the page of a proxy has neither
                for one in page.get("Contents", ())
            ]
        yield from sorted(stored for stored in found if is_name(stored.name))  # not all storages sort alike

    def delete(self, names: Iterable[str]) -> None:
        keys = iter([self._key(name) for name in names])
        while batch := list(islice(keys, _BATCH)):
            objects = {"Objects": [{"Key": key} for key in batch], "Quiet": True}
            with self._told():
                try:
                    answer = self._client.delete_objects(Bucket=self._bucket, Delete=objects)
                except ClientError as error:
                    if code_of(error) not in _NOT_SUPPORTED:
                        raise
                    answer: dict[str, Any] = {}
                    for key in batch:
                        self._client.delete_object(Bucket=self._bucket, Key=key)
            refused = [one for one in answer.get("Errors", ()) if one.get("Code") not in _MISSING]
            if refused:
                why = meaning(str(refused[0].get("Code")), "DeleteObjects", self._bucket)
                raise TargetUnavailable(
                    f"the target {self.label}: {len(refused)} objects are not deleted,"
                    f" such as {refused[0].get('Key')}: {why}"
                )

    def clean(self, older_than_s: float) -> int:
        count = 0
        with self._told():
            for page in self._pages("list_multipart_uploads", Bucket=self._bucket, Prefix=self._prefix):
                now = _clock(page)
                for found in page.get("Uploads", ()):
                    upload = {"Bucket": self._bucket, "Key": found["Key"], "UploadId": found["UploadId"]}
                    with suppress(self._client.exceptions.NoSuchUpload):
                        if (now - self._last_change(upload, found["Initiated"])).total_seconds() >= older_than_s:
                            self._client.abort_multipart_upload(**upload)
                            count += 1
        return count

    def _pages(self, operation: str, **arguments: str) -> Iterator[dict[str, Any]]:
        return iter(self._client.get_paginator(operation).paginate(**arguments, PaginationConfig={"PageSize": _BATCH}))

    def _key(self, name: str) -> str:
        return self._prefix + checked(name)

    def _mark(self, key: str) -> str | None:
        """Return what its upload marked an object with; None if it is not stored."""
        with self._told():
            try:
                answer = self._client.head_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if code_of(error) in _MISSING:
                    return None
                raise
        return str(answer.get("Metadata", {}).get(_MARK, ""))

    def _publish(
        self, name: str, mark: str, call: Callable[..., Any], arguments: dict[str, Any], *, replace: bool
    ) -> None:
        condition = {} if replace or not self._refuses_to_overwrite else {"IfNoneMatch": "*"}
        with self._told():
            try:
                call(**arguments, **condition)
            except ClientError as error:
                code = code_of(error)
                if condition and code in _NOT_SUPPORTED:
                    self._refuses_to_overwrite = False
                    self._publish(name, mark, call, arguments, replace=replace)
                elif code not in _TAKEN or self._mark(arguments["Key"]) != mark:
                    raise (_exists(name) if condition and code in _TAKEN else error) from error
                # else it is ours: the answer was lost, and the request repeated

    def _upload(self, upload: dict[str, str], parts: Iterable[bytes]) -> tuple[int, Parts]:
        size: int = 0
        done: Parts = []
        pending = deque[Future[dict[str, Any]]]()
        pool, stopping = ThreadPoolExecutor(_AT_ONCE, "s3"), Event()
        try:
            for number, part in enumerate(parts, 1):
                if number > _PARTS:
                    raise TargetUnavailable(f"the target {self.label} takes at most {_PARTS * _PART_BYTES} bytes")
                size += len(part)
                while len(pending) >= _AT_ONCE:
                    done.append(pending.popleft().result())
                pending.append(pool.submit(_patiently, partial(self._part, upload, number, part), stopping))
            done.extend(future.result() for future in pending)
        finally:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
        return size, done

    def _part(self, upload: dict[str, str], number: int, part: bytes) -> dict[str, Any]:
        with self._told():
            answer = self._client.upload_part(**upload, PartNumber=number, Body=part)
            return {"PartNumber": number, "ETag": answer["ETag"]}

    def _answer(self, name: str, key: str, at: int, tag: str) -> dict[str, Any]:
        rest = {"Range": f"bytes={at}-", "IfMatch": tag} if at else {}
        with self._told():
            try:
                return self._client.get_object(Bucket=self._bucket, Key=key, **rest)
            except ClientError as error:
                if code_of(error) in _MISSING:
                    raise NotFound(f"{name} is not stored in {self.label}") from error
                raise

    def _check_resumed(self, answer: dict[str, Any], at: int, end: int, tag: str) -> None:
        """Check the answer to a request for the rest of an object; not all storages do as they are asked."""
        if end < 0:
            return
        if answer["ETag"] != tag:
            raise self._unavailable(ClientError({"Error": {"Code": "PreconditionFailed"}}, "GetObject"))
        if at and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
            raise TargetUnavailable(f"the target {self.label} does not resume a download that was cut off")
        found = _RANGE.fullmatch(answer.get("ContentRange", "")) if at else None
        is_asked = not at or (found is not None and (int(found[1]), int(found[2])) == (at, end))
        if not is_asked or at + answer["ContentLength"] > end:
            raise TargetUnavailable(f"the target {self.label} answers with another range of bytes than was asked for")

    def _last_change(self, upload: dict[str, str], initiated: datetime) -> datetime:
        parts = chain.from_iterable(page.get("Parts", ()) for page in self._pages("list_parts", **upload))
        return max([initiated, *(part["LastModified"] for part in parts)])

    @contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except (ClientError, BotoCoreError, HTTPError, OSError) as error:
            raise self._unavailable(error) from error
        except (ResponseParserError, LookupError, ValueError, RecursionError) as error:  # such as the page of a proxy
            message = f"the target {self.label}: it does not answer as S3 does: check backup.s3_endpoint and proxies"
            raise TargetUnavailable(message) from error

    def _unavailable(self, error: Exception) -> TargetUnavailable:
        return TargetUnavailable(f"the target {self.label}: {explained(error, self._bucket)}")


@dataclass(slots=True)
class _Outage:
    """Failures of a transfer since its last progress."""

    failures: int = 0
    since: float = 0.0

    def pause_s(self, problem: TargetUnavailable) -> float:
        """Return how long to wait before the next attempt. Raises the problem if it is no outage, or a long one."""
        now = time.monotonic()
        self.since = self.since if self.failures else now
        if not is_outage(problem) or now > self.since + _PATIENCE_S:
            raise problem
        self.failures += 1
        if self.failures == 2:  # not of a connection that was closed
            logger.warning("{}; trying to go on for {:g} s", problem, _PATIENCE_S)
        return min(0.1 * 2**self.failures, _LONGEST_PAUSE_S)


def _patiently(work: Callable[[], _T], stopping: Event) -> _T:
    outage = _Outage()
    while True:
        try:
            return work()
        except TargetUnavailable as problem:
            if stopping.wait(outage.pause_s(problem)):
                raise


def _exists(name: str) -> Conflict:
    return Conflict(f"{name} is stored already")


def _clock(answer: dict[str, Any]) -> datetime:
    """Return the time of the storage, whose clock the times of its uploads are of."""
    with suppress(KeyError, ValueError):
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return datetime.now(UTC)


def _parts(content: Iterable[bytes]) -> Iterator[bytes]:
    held: list[memoryview] = []
    size = 0
    for chunk in content:
        rest = memoryview(chunk)
        while size + len(rest) >= _PART_BYTES:
            cut = _PART_BYTES - size
            yield b"".join([*held, rest[:cut]])
            held, size, rest = [], 0, rest[cut:]
        if rest:
            held.append(rest)
            size += len(rest)
    if held:
        yield b"".join(held)
