"""The bytes of S3 objects, by plain HTTP requests of one thread each, signed by botocore.

aiobotocore moves them all through one event loop, with several copies of each byte and the hash of its
signature on the way: half the speed of what stands here. Everything but the bytes stays with it.

The SHA-256 of every request's body is part of its signature, by http and by https: a store refuses a body
that is not the one that was sent.
"""

from __future__ import annotations

import hashlib
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import urllib3
from botocore import UNSIGNED
from botocore.auth import EMPTY_SHA256_HASH, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection

from llmctl.storage.deadline import budget
from llmctl.storage.drivers.base import Sink
from llmctl.storage.streams import Fingerprinted

PIECE = 1 << 20
"""Bytes between two signs of life."""

_CONNECT_S = 5.0
_SILENT_S = 30.0
"""How long one connection may get no byte back, or need for one piece of a body."""

_TOLD_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a request carries.

    Attributes:
        sha256: of all of it, as hex digits.
        pieces: gives it out; the argument is called between two of them.
    """

    size: int
    sha256: str
    pieces: Callable[[Callable[[], None]], Iterator[bytes | memoryview]]


def body_of(data: bytes) -> Body:
    """A body that lies in memory."""

    def pieces(beat: Callable[[], None]) -> Iterator[memoryview]:
        view = memoryview(data)
        for at in range(0, len(view), PIECE):
            beat()
            yield view[at : at + PIECE]

    return Body(size=len(data), sha256=hashlib.sha256(data).hexdigest(), pieces=pieces)


def body_from(source: Fingerprinted, size: int) -> Body:
    """A body that is read twice, for its hash and to be sent: the file's own hash is that of the request."""
    beat = budget().beat
    while source.read(PIECE):
        beat()

    def pieces(beat: Callable[[], None]) -> Iterator[bytes]:
        source.rewind()
        while piece := source.read(PIECE):
            beat()
            yield piece

    return Body(size=size, sha256=source.sha256, pieces=pieces)


class Bulk:
    """GET and PUT for the account of one s3fs file system.

    Args:
        fs: the file system; it knows endpoint, credentials and certificates.
        wait: runs a coroutine in the file system's loop, and is cancelled with the caller.
    """

    def __init__(self, fs: Any, wait: Callable[[Callable[..., Coroutine[Any, Any, Any]]], Any]) -> None:
        self._fs = fs
        self._wait = wait

    def get(self, bucket: str, key: str, start: int, end: int | None, sink: Sink) -> None:
        """Bytes `start` to `end` (None: all that is left) into `sink`, as one version of the object."""
        ranged = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end else {}
        answer = self._send("GET", bucket, key, ranged)
        beat = budget().beat
        try:
            while piece := answer.read(PIECE):
                beat()
                sink(piece)
        except BaseException:
            answer.close()  # what is left of the body makes the connection useless
            raise
        answer.release_conn()

    def put(self, bucket: str, key: str, body: Body, query: Mapping[str, Any] | None = None) -> str:
        """Store `body` as an object, or as the part of one that `query` names; its ETag."""
        headers = {"Content-Length": str(body.size), "Content-Type": "application/octet-stream"}
        answer = self._send("PUT", bucket, key, headers, body, query or {})
        answer.read()
        answer.release_conn()
        return str(answer.headers["ETag"])

    def _send(
        self,
        method: str,
        bucket: str,
        key: str,
        headers: dict[str, str],
        body: Body | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        url, signed = self._signed(method, bucket, key, headers, body, query)
        answer = self._pool(url).urlopen(
            method,
            url,
            body=None if body is None else body.pieces(budget().beat),
            headers=signed,
            timeout=urllib3.Timeout(connect=_CONNECT_S, read=max(0.01, min(_SILENT_S, budget().left()))),
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        if answer.status >= 300:
            told = answer.read(_TOLD_BYTES)
            answer.close()
            raise refusal(answer.status, told, f"{method.title()}Object")
        return answer

    def _signed(
        self,
        method: str,
        bucket: str,
        key: str,
        headers: dict[str, str],
        body: Body | None,
        query: Mapping[str, Any] | None,
    ) -> tuple[str, dict[str, str]]:
        """URL and headers of a request."""

        async def ask() -> tuple[str, Any, Any]:
            await self._fs.set_session()
            client = self._fs._s3
            # The one way to learn where this account's objects are: its path without the signature.
            place = await client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
            credentials = client._request_signer._credentials
            return place, client.meta, credentials and await credentials.get_frozen_credentials()

        place, meta, credentials = self._wait(ask)
        url = urlunsplit(urlsplit(place)._replace(query=urlencode(query or {})))
        if meta.config.signature_version is UNSIGNED:
            return url, headers
        if credentials is None:
            raise NoCredentialsError
        request = AWSRequest(method, url, headers)
        request.context["sha256"] = body.sha256 if body else EMPTY_SHA256_HASH
        _Signer(credentials, "s3", meta.region_name).add_auth(request)
        return url, dict(request.headers.items())

    def _pool(self, url: str) -> urllib3.PoolManager:
        session = self._fs.session
        ca = self._fs.client_kwargs.get("verify") or session.get_config_variable("ca_bundle")
        proxies = get_environ_proxies(url)
        return _pool(os.getpid(), get_cert_path(ca or True), proxies.get(urlsplit(url).scheme))


class _Signer(S3SigV4Auth):  # type: ignore[misc]
    """Takes the body's hash as it was computed in the thread that sends it."""

    def payload(self, request: AWSRequest) -> str:
        return str(request.context["sha256"])


class _Patient(HTTPConnection):
    """urllib3 sends a body under the connect timeout, and on a slow line with many files at once every piece
    of it takes longer than that."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(_SILENT_S)

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:  # connected already
            self.timeout = _SILENT_S
        super().request(*args, **kwargs)


class _PatientTls(_Patient, HTTPSConnection):
    pass


class _Http(urllib3.HTTPConnectionPool):
    ConnectionCls = _Patient


class _Https(urllib3.HTTPSConnectionPool):
    ConnectionCls = _PatientTls


@cache
def _pool(_pid: int, ca: str, proxy: str | None) -> urllib3.PoolManager:
    # blocksize: what goes to the socket at once.
    options: dict[str, Any] = {
        "maxsize": 64,
        "ca_certs": ca,
        "cert_reqs": "CERT_REQUIRED",
        "blocksize": PIECE,
    }
    pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    pool.pool_classes_by_scheme = {"http": _Http, "https": _Https}
    return pool


def refusal(status: int, told: bytes, operation: str) -> Exception:
    """What s3fs raises for an answer of that status with that XML."""
    from s3fs.errors import translate_boto_error

    error = {"Code": str(status), "Message": ""}
    with suppress(ET.ParseError):
        for node in ET.fromstring(told):  # noqa: S314 - of the store that we trust with the data
            if node.tag.rsplit("}", 1)[-1] in error:
                error[node.tag.rsplit("}", 1)[-1]] = node.text or ""
    response = {"Error": error, "ResponseMetadata": {"HTTPStatusCode": status}}
    translated: Exception = translate_boto_error(ClientError(response, operation))
    return translated
