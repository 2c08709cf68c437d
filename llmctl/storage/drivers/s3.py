"""`s3://`: objects by the S3 API, Ceph's RADOS gateway first of all, through the client that s3fs keeps.

Closed here: botocore's checksum trailers, which RGW answers with 411 over https; listing caches; refusals
inside a bulk delete that succeeded; requests that outlive their caller (each is cancelled at the deadline, so
that a late one can't replace a newer object); uploads in parts that die half-way (aborted at once, or by
`cleanup` where even that fails). Buckets are never made: RGW refuses that together with most regions.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO, TypeVar

from llmctl.errors import NotFoundError
from llmctl.storage.deadline import budget
from llmctl.storage.drivers.base import Page, Sink
from llmctl.storage.drivers.parts import send_parts
from llmctl.storage.drivers.s3bulk import Bulk, body_from, body_of
from llmctl.storage.faults import STAGE
from llmctl.storage.files import StoreFile
from llmctl.storage.streams import Fingerprinted

T = TypeVar("T")

WHOLE = 64 << 20
"""Files up to this size go up in one request: hashed once, while parts have a hash of their own each."""

PART = 8 << 20
"""Larger files go up in parts of this size (more where 10,000 parts would not do)."""

_BROKEN = ("BadDigest", "XAmzContentSHA256Mismatch", "RequestTimeout", "IncompleteBody")
"""What a store calls a body that came in another way than it was sent."""

_MOST_PARTS = 9_000
_ABORT_S = 5.0
_COPY_LIMIT = 5 << 30
_CONNECT_S = 5
_SILENT_S = 30
"""How long one request may get no byte."""


def connect(options: dict[str, Any]) -> Any:
    """s3fs's file system for `options`: `endpoint_url`, `key`, `secret`, `token`, `profile`, `verify`.

    What they leave out comes from the usual places: AWS_* variables and profiles. One per process and
    account, because each keeps its own connections.
    """
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    same_as_before = (os.getpid(), environment)
    return _connect(tuple(sorted(options.items())), same_as_before)


@lru_cache(maxsize=8)
def _connect(options: tuple[tuple[str, Any], ...], _same_as_before: tuple[Any, ...]) -> Any:
    from s3fs import S3FileSystem

    known = dict(options)
    client = {name: known.pop(name) for name in ("verify", "region_name") if name in known}
    fs = S3FileSystem(
        **known,
        client_kwargs=client,
        config_kwargs={
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "retries": {"total_max_attempts": 1},  # storage/deadline.py does that
            "connect_timeout": _CONNECT_S,
            "read_timeout": _SILENT_S,
            "max_pool_connections": 64,
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    fs.retries = 1
    return fs


class S3Driver:
    """A `Driver` over `connect`'s file system; paths are `bucket/key`."""

    renames = False
    checks = True  # the hash of each body is signed with its request

    def __init__(self, fs: Any) -> None:
        self._fs = fs
        self._bulk = Bulk(fs, self._run)
        self._orphans: list[tuple[str, str, str]] = []

    def info(self, path: str) -> StoreFile:
        bucket, key = _split(path)
        found = self._do("head_object", Bucket=bucket, Key=key)
        return _store_file(path, found["ContentLength"], found)

    def is_folder(self, path: str) -> bool:
        bucket, key = _split(path)
        listed = self._do("list_objects_v2", Bucket=bucket, Prefix=key + "/", MaxKeys=1)
        return bool(listed.get("Contents"))

    def page(self, folder: str, at: Any) -> Page:
        bucket, key = _split(folder)
        more = {} if at is None else {"ContinuationToken": at}
        listed = self._do("list_objects_v2", Bucket=bucket, Prefix=key and key + "/", **more)
        # Other tools mark folders by empty objects whose names end in `/`.
        files = [
            _store_file(f"{bucket}/{item['Key']}", item["Size"], item)
            for item in listed.get("Contents", ())
            if not item["Key"].endswith("/")
        ]
        return Page(files=files, next=listed.get("NextContinuationToken"))

    def read(self, path: str, sink: Sink, start: int = 0, end: int | None = None) -> None:
        if end is not None and end <= start:
            return
        with self._named_bucket(path):
            self._bulk.get(*_split(path), start, end, sink)

    def write(self, path: str, opened: Callable[[], BinaryIO], size: int) -> None:
        self._abort_orphans()
        with opened() as source, self._named_bucket(path):
            if size <= PART:
                self._bulk.put(*_split(path), body_of(source.read()))
            elif size <= WHOLE and isinstance(source, Fingerprinted):
                self._bulk.put(*_split(path), body_from(source, size))
            else:
                self._upload(*_split(path), source, max(PART, -(-size // _MOST_PARTS)))

    def replace(self, source: str, target: str) -> None:
        (bucket, key), (new_bucket, new_key) = _split(source), _split(target)
        size = self.info(source).size
        if size < _COPY_LIMIT:
            place = {"Bucket": bucket, "Key": key}
            self._do("copy_object", Bucket=new_bucket, Key=new_key, CopySource=place)
        else:
            self._run(self._fs._copy_managed, source, target, size)
        self.remove(source)

    def move_folder(self, source: str, target: str) -> None:
        at = None
        while True:
            page = self.page(source, at)
            for file in page.files:
                self.replace(file.path, target + file.path[len(source) :])
            at = page.next
            if at is None:
                return

    def remove(self, path: str) -> None:
        bucket, key = _split(path)
        self._do("delete_object", Bucket=bucket, Key=key)

    def remove_all(self, folder: str, page: Page) -> None:
        if not page.files:
            return
        bucket, _ = _split(folder)
        keys = [{"Key": _split(file.path)[1]} for file in page.files]
        done = self._do("delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
        if refused := done.get("Errors"):
            first = refused[0]
            raise OSError(f"{first.get('Key')}: {first.get('Message') or first.get('Code')}")

    def make_folder(self, path: str) -> None:
        """Nothing: an object store has no folders."""

    def free(self, folder: str) -> int | None:
        return None

    def unfinished(self, folder: str) -> list[tuple[str, float]]:
        bucket, key = _split(folder)
        found: list[tuple[str, float]] = []
        more: dict[str, str] = {}
        while True:
            listed = self._do("list_multipart_uploads", Bucket=bucket, Prefix=key and key + "/", **more)
            for upload in listed.get("Uploads", ()):
                name = f"{bucket}/{upload['Key']}\0{upload['UploadId']}"
                found.append((name, upload["Initiated"].timestamp()))
            if not listed.get("IsTruncated"):
                return found
            more = {
                "KeyMarker": listed["NextKeyMarker"],
                "UploadIdMarker": listed["NextUploadIdMarker"],
            }

    def abort(self, name: str) -> None:
        path, _, upload = name.rpartition("\0")
        bucket, key = _split(path)
        self._do("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)

    def is_passing(self, error: BaseException) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.exceptions import ConnectionError as Unconnected
        from urllib3.exceptions import HTTPError, SSLError

        cause = error.__cause__ or error
        if isinstance(cause, ClientError):
            status = int(cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            return status >= 500 or status in (408, 429) or cause.response["Error"]["Code"] in _BROKEN
        if isinstance(cause, BotoCoreError):
            return isinstance(cause, (Unconnected, HTTPClientError))
        if isinstance(error, HTTPError):
            return not isinstance(error, SSLError)
        if type(cause).__module__.startswith("aiohttp."):
            return True
        return isinstance(cause, (ConnectionError, TimeoutError))

    def _do(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One request, cancelled at the deadline of the call that it is made for."""
        answer: dict[str, Any] = self._run(self._request, method, arguments)
        return answer

    def _run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), self._fs.loop)
        budget().on_abandon(future.cancel)
        return future.result()

    async def _request(self, method: str, arguments: dict[str, Any]) -> Any:
        with self._named_bucket(arguments["Bucket"]):
            return await self._fs._call_s3(method, **arguments)

    @contextmanager
    def _named_bucket(self, path: str) -> Iterator[None]:
        """A missing bucket is told as what it is, not as a missing file."""
        try:
            yield
        except FileNotFoundError as error:
            response = getattr(error.__cause__, "response", {})
            if response.get("Error", {}).get("Code") == "NoSuchBucket":
                name = _split(path)[0]
                hint = (
                    "llmctl makes no buckets: check its name and the endpoint (AWS_ENDPOINT_URL), or make it"
                )
                raise NotFoundError(f"s3://{name}: no such bucket", hint=hint, stage=STAGE) from error
            raise

    def _upload(self, bucket: str, key: str, source: BinaryIO, size: int) -> None:
        """All parts, a few at a time, then the one request that makes the object appear."""
        target = {"Bucket": bucket, "Key": key}
        target["UploadId"] = self._do("create_multipart_upload", **target)["UploadId"]
        orphan = (bucket, key, target["UploadId"])
        try:
            parts = send_parts(self._sender(*orphan), source, size)
            self._do("complete_multipart_upload", **target, MultipartUpload={"Parts": parts})
        except BaseException:
            self._orphans.append(orphan)
            # Not waited for: a store that just stalled may stall again, and the caller has a deadline.
            asyncio.run_coroutine_threadsafe(self._abort_orphan(orphan), self._fs.loop)
            raise

    def _sender(self, bucket: str, key: str, upload: str) -> Callable[[int, bytes], dict[str, Any]]:
        def send(number: int, data: bytes) -> dict[str, Any]:
            query = {"partNumber": number, "uploadId": upload}
            return {"PartNumber": number, "ETag": self._bulk.put(bucket, key, body_of(data), query)}

        return send

    async def _abort_orphan(self, orphan: tuple[str, str, str]) -> None:
        """Best effort, now; what fails is tried before the next upload, and left to `cleanup` at last."""
        from botocore.exceptions import BotoCoreError

        bucket, key, upload = orphan
        request = {"Bucket": bucket, "Key": key, "UploadId": upload}
        try:
            await asyncio.wait_for(self._request("abort_multipart_upload", request), _ABORT_S)
        except FileNotFoundError:
            pass  # it is gone
        except (OSError, BotoCoreError, NotFoundError):
            return  # the upload's own failure is the one that is reported
        if orphan in self._orphans:
            self._orphans.remove(orphan)

    def _abort_orphans(self) -> None:
        for orphan in list(self._orphans):
            self._run(self._abort_orphan, orphan)


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    return bucket, key


def _store_file(path: str, size: int, found: dict[str, Any]) -> StoreFile:
    modified = found["LastModified"].timestamp()
    version = f"{found.get('ETag', '').strip(chr(34))}-{modified:.3f}"
    return StoreFile(path=path, size=int(size), version=version, modified=modified)
