"""`webhdfs://`: HDFS by REST, where only HTTP gets through.

fsspec's client is used for what it does well (Kerberos, tokens, proxies, the NameNode's errors). Closed
here: its writes are a chain of APPENDs, and APPEND itself is broken (one streamed CREATE here); its `mv` does
nothing onto an existing file and does not say so (a rename with OVERWRITE here, refused aloud); it cuts names
at `?` and `#`; it has no timeout at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

from llmctl.storage.deadline import Budget, budget
from llmctl.storage.drivers.base import Page, Sink
from llmctl.storage.files import StoreFile

_SILENT_S = 30.0
"""How long one connection may get no byte through."""

_PIECE = 1 << 20
_FIGURES = "Hadoop:service=NameNode,name=FSNamesystem"

_BUSY = (
    "safe mode",
    "standby",
    "retriable",
    "not been replicated",
    "could only be written to 0 of",
    "failed to find datanode",
)
"""What a NameNode says while it, or its DataNodes, come up."""


def connect(host: str, port: int, **options: Any) -> Any:
    """fsspec's client with names taken as they are, and with timeouts."""
    from fsspec.implementations.webhdfs import WebHDFS
    from requests.adapters import HTTPAdapter

    chosen = options.get("session_verify", True)

    class Timed(HTTPAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            if chosen is not True:
                kwargs["verify"] = chosen  # else REQUESTS_CA_BUNDLE would win over what stores.yaml names
            if kwargs.get("timeout") is None:
                # Of one read or write on the socket; the first number also holds while sending.
                kwargs["timeout"] = max(0.01, min(_SILENT_S, budget().left()))
            return super().send(request, *args, **kwargs)

    class PlainNames(WebHDFS):  # type: ignore[misc]
        protocol = ("llmctl-webhdfs",)

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path

        def _connect(self) -> None:
            super()._connect()
            for scheme in ("http://", "https://"):
                self.session.mount(scheme, Timed(pool_maxsize=32))

    return PlainNames(host, port=port, skip_instance_cache=True, use_listings_cache=False, **options)


class WebHdfsDriver:
    """A `Driver` over the client of `connect`; paths are absolute."""

    renames = True
    checks = False  # HTTP carries no checksum

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def info(self, path: str) -> StoreFile:
        status = self._status(path)
        if status["type"] == "DIRECTORY":
            raise IsADirectoryError(path)
        return _store_file(path, status)

    def is_folder(self, path: str) -> bool:
        try:
            return bool(self._status(path)["type"] == "DIRECTORY")
        except FileNotFoundError:
            return False

    def page(self, folder: str, at: Any) -> Page:
        # (folders still to list, name to go on after in the first one); the NameNode sends 1000 at a time.
        todo, after = ([folder], "") if at is None else at
        try:
            answer = self._fs._call("LISTSTATUS_BATCH", path=todo[0] or "/", startAfter=after).json()
        except FileNotFoundError:
            return Page(files=[], next=(todo[1:], "") if todo[1:] else None)
        listing = answer["DirectoryListing"]
        found = [s for s in listing["partialListing"]["FileStatuses"]["FileStatus"] if s["pathSuffix"]]
        files = [_store_file(_below(todo[0], s), s) for s in found if s["type"] != "DIRECTORY"]
        todo = [*todo, *(_below(todo[0], s) for s in found if s["type"] == "DIRECTORY")]
        if listing["remainingEntries"] and found:
            return Page(files=files, next=(todo, found[-1]["pathSuffix"]))
        return Page(files=files, next=(todo[1:], "") if todo[1:] else None)

    def read(self, path: str, sink: Sink, start: int = 0, end: int | None = None) -> None:
        # The client has no way to stream, and a whole file may take long: every piece is a sign of life.
        part = {} if end is None else {"length": end - start}
        answer = self._fs._call("OPEN", path=path, redirect=False, offset=start, **part)
        location = self._fs._apply_proxy(answer.headers["Location"])
        beat = budget().beat
        with self._fs.session.get(location, stream=True) as answer:
            _raise_for(answer)
            for piece in answer.iter_content(_PIECE):
                beat()
                sink(piece)

    def write(self, path: str, opened: Callable[[], BinaryIO], size: int) -> None:
        begun = self._fs._call("CREATE", "PUT", path, redirect=False, overwrite="true")
        location = self._fs._apply_proxy(begun.headers["Location"])
        with opened() as source:
            done = self._fs.session.put(
                location,
                data=_Beating(source, size, budget()) if size else b"",
                headers={"content-type": "application/octet-stream"},
            )
        _raise_for(done)

    def replace(self, source: str, target: str) -> None:
        # With options it is the NameNode's newer rename: one step, and a refusal is an error.
        self._fs._call("RENAME", "PUT", source, destination=target, renameoptions="OVERWRITE")

    def move_folder(self, source: str, target: str) -> None:
        self._fs._call("RENAME", "PUT", source, destination=target, renameoptions="NONE")

    def remove(self, path: str) -> None:
        self._fs._call("DELETE", "DELETE", path, recursive="false")

    def remove_all(self, folder: str, page: Page) -> None:
        self._fs._call("DELETE", "DELETE", folder, recursive="true")

    def make_folder(self, path: str) -> None:
        self._fs._call("MKDIRS", "PUT", path)

    def free(self, folder: str) -> int | None:
        # No call of WebHDFS tells it, but the page of figures beside it, where that is open to us.
        place = self._fs.url.split("/webhdfs/", 1)[0]
        answer = self._fs.session.get(f"{place}/jmx", params={"qry": _FIGURES})
        if answer.status_code != 200:
            return None
        beans = answer.json()["beans"]
        return int(beans[0]["CapacityRemaining"]) if beans else None

    def unfinished(self, folder: str) -> list[tuple[str, float]]:
        return []

    def abort(self, name: str) -> None:
        raise FileNotFoundError(name)

    def is_passing(self, error: BaseException) -> bool:
        from requests.exceptions import ConnectionError as Unconnected
        from requests.exceptions import HTTPError, RequestException, Timeout

        if isinstance(error, HTTPError):
            return error.response is not None and error.response.status_code >= 500
        if isinstance(error, RequestException):
            return isinstance(error, (Unconnected, Timeout)) or "IncompleteRead" in str(error)
        if type(error) is RuntimeError:  # how the client passes on what the NameNode said
            return any(sign in str(error).lower() for sign in _BUSY)
        return isinstance(error, (ConnectionError, TimeoutError))

    def _status(self, path: str) -> dict[str, Any]:
        status: dict[str, Any] = self._fs._call("GETFILESTATUS", path=path or "/").json()["FileStatus"]
        return status


class _Beating:
    """A stream whose every read is a sign of life, and that fails once nobody waits any more."""

    def __init__(self, source: BinaryIO, size: int, own: Budget) -> None:
        self._source, self._size, self._own = source, size, own

    def __len__(self) -> int:
        # Without a length it would go in chunks, and the DataNode would wait for ever.
        return self._size

    def read(self, size: int = -1) -> bytes:
        self._own.beat()
        return self._source.read(size)

    def __iter__(self) -> Any:
        while chunk := self.read(_PIECE):
            yield chunk


def _raise_for(answer: Any) -> None:
    """A DataNode's refusal with the reason that it gives."""
    if answer.status_code < 400:
        return
    try:
        said = answer.json()["RemoteException"]["message"]
    except (ValueError, KeyError):
        answer.raise_for_status()
    raise RuntimeError(said)


def _below(folder: str, status: dict[str, Any]) -> str:
    return f"{folder}/{status['pathSuffix']}"


def _store_file(path: str, status: dict[str, Any]) -> StoreFile:
    version = f"{status['modificationTime']}-{status.get('fileId', '')}"
    modified = status["modificationTime"] / 1000
    return StoreFile(path=path, size=int(status["length"]), version=version, modified=modified)
