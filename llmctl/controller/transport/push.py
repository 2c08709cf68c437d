"""A tree onto hosts: named by its hash, only what changed travels, visible when whole.

    with Push(lambda: scan(path, cache_dir=cache), PushMemory(cache)) as push:
        results = connections.each(hosts, lambda h: push.to(connections.get(h.name), workdir=h.workdir))

One channel per host. The host clones (hard links) the tree that it was sent last while the controller still
scans; then the changed files follow as one compressed tar, compressed once for all hosts.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from llmctl.controller.transport.base import Stream, Transport
from llmctl.controller.transport.payload import Delta, Payloads, compressed, delta
from llmctl.controller.transport.pushmemory import PushMemory
from llmctl.controller.transport.pushscript import SCRIPT, UNPACKER
from llmctl.controller.transport.tree import Tree
from llmctl.errors import LlmctlError, RemoteCommandError, TransferError

STAGE = "push"
_STALL_S = 60.0
"""No byte taken, or no line said, for this long: the push has failed."""

_UNPACK_S = 600.0
_SMALL = 256 << 10
"""A change up to this size is sent without waiting to hear that it is wanted: one round trip less."""

Progress = Callable[[int], None]
"""Called with the number of bytes just sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """What one push did. `already`: the host had the whole tree, nothing was sent."""

    tree_hash: str
    sent_files: int
    sent_bytes: int
    total_files: int
    already: bool


class Push:
    """One tree for many hosts; thread-safe.

    The scan runs in a thread of its own: at once, while connections are being made; or, with `open_first`,
    once the first host's script has been started, since two busy threads delay each other.
    """

    def __init__(
        self, tree: Tree | Callable[[], Tree], memory: PushMemory, *, open_first: bool = False
    ) -> None:
        self._memory = memory
        self._payloads = Payloads()
        self._deltas: dict[str, Delta] = {}
        self._lock = threading.Lock()
        self._scanner = ThreadPoolExecutor(1, thread_name_prefix="scan")
        self._scan = (lambda: tree) if isinstance(tree, Tree) else tree
        self._scanned: Future[Tree] | None = None
        if not open_first:
            self._start_scan()

    @property
    def tree(self) -> Tree:
        """The scanned tree; waits for it. Raises what the scan raised."""
        return self._start_scan().result()

    def to(
        self, transport: Transport, *, workdir: str, python: str = "python3", progress: Progress | None = None
    ) -> PushResult:
        """Push to one host; `~` in `workdir` is the host's.

        Raises:
            TransferError: it could not be unpacked there (disk full, no right to write); nothing is visible.
            IntegrityError: a file changed meanwhile.
            HostUnreachableError, DeadlineError: the connection was lost, or nothing moved for a minute.
        """
        known = self._memory.recall(transport.host, workdir)
        try:
            return self._once(transport, workdir, python, known.tree, known.codec, progress)
        except TransferError:
            if not known.codec:
                raise
        # What was remembered of the host may be no longer so: its zstd, or the base's content.
        return self._once(transport, workdir, python, "", "", progress)

    def close(self) -> None:
        """Free the payloads; no push may be going on."""
        self._payloads.close()
        self._scanner.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_scan(self) -> Future[Tree]:
        with self._lock:
            if self._scanned is None:
                self._scanned = self._scanner.submit(self._scan)
            return self._scanned

    def _once(
        self,
        transport: Transport,
        workdir: str,
        python: str,
        base: str,
        codec: str,
        progress: Progress | None,
    ) -> PushResult:
        nonce = secrets.token_hex(8)
        argv = ["sh", "-c", SCRIPT, "llmctl-push", workdir, base, nonce, codec, python, UNPACKER]
        with transport.open(argv, stage=STAGE) as stream:
            talk = _Talk(stream, transport.host)
            tree = self.tree
            codec, has, trees = talk.hello()
            base, manifest = self._choose_base(tree, has, trees)
            change = self._delta(tree, base, manifest)
            sent = self._send(talk, tree, base, change, codec, progress)
            self._memory.keep(tree)  # while the host unpacks
            talk.finish()
        self._memory.remember(transport.host, workdir, tree.hash, codec)
        return PushResult(
            tree_hash=tree.hash,
            sent_files=0 if sent is None else len(change.send),
            sent_bytes=sent or 0,
            total_files=tree.files,
            already=sent is None,
        )

    def _choose_base(self, tree: Tree, has: str, trees: list[str]) -> tuple[str, bytes]:
        """The tree to start from, and its manifest: the one being cloned, or any that both sides know."""
        for candidate in (tree.hash, has, *trees):
            if candidate in (has, *trees) and (manifest := self._memory.manifest(candidate)):
                return candidate, manifest
        return "", b""

    def _delta(self, tree: Tree, base: str, manifest: bytes) -> Delta:
        with self._lock:
            if base not in self._deltas:
                self._deltas[base] = delta(manifest, tree)
            return self._deltas[base]

    def _send(
        self, talk: _Talk, tree: Tree, base: str, change: Delta, codec: str, progress: Progress | None
    ) -> int | None:
        """Bytes sent, or None where the host had the tree."""
        header = f"{tree.hash} {base or '-'} {len(change.remove)}\n".encode() + change.remove
        if change.bytes <= _SMALL and len(change.send) <= 512:
            header += b"".join(compressed(tree, change, codec))
            talk.write(header, progress)
            return len(header) if talk.wanted() else None
        talk.write(header, progress)
        if not talk.wanted():
            return None
        sent = len(header)
        for chunk in self._payloads.get(tree, base, change, codec).chunks():
            talk.write(chunk, progress)
            sent += len(chunk)
            if talk.ended_early:
                break
        return sent


class _Talk:
    """The conversation with the script; whatever goes wrong there ends as its own reason."""

    def __init__(self, stream: Stream, host: str) -> None:
        self._stream = stream
        self._host = host
        self._lines = self._read_lines()
        self.ended_early = False

    def hello(self) -> tuple[str, str, list[str]]:
        """Codec, the base that is being cloned (or ""), other trees that the host has."""
        words = self._line().split()
        if words[:1] != ["hello"]:
            raise self._failure()
        return words[1], "" if words[2] == "-" else words[2], words[3:]

    def write(self, data: bytes, progress: Progress | None) -> None:
        if self.ended_early:
            return
        try:
            self._stream.write(data, deadline_s=_STALL_S)
        except RemoteCommandError:
            self.ended_early = True  # its reason follows on stderr
        else:
            if progress:
                progress(len(data))

    def wanted(self) -> bool:
        """True for `send`, False for `have`."""
        word = self._line()
        if word not in ("send", "have"):
            raise self._failure()
        self._has_it = word == "have"
        return word == "send"

    def finish(self) -> None:
        """The script's end: all of it unpacked and visible, or an error."""
        if not self._has_it:
            with contextlib.suppress(RemoteCommandError):
                self._stream.end_input()
            if self._line(_UNPACK_S) != "done" or not self._stream.wait(deadline_s=_STALL_S).ok:
                raise self._failure()

    def _line(self, deadline_s: float = _STALL_S) -> str:
        self._deadline_s = deadline_s
        return next(self._lines, "")

    def _read_lines(self) -> Iterator[str]:
        rest = b""
        while data := self._stream.read(1 << 16, deadline_s=self._deadline_s):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")

    def _failure(self) -> LlmctlError:
        done = self._stream.wait(deadline_s=_STALL_S)
        text = done.stderr.decode(errors="replace")
        for known, hint in _REASONS.items():
            if known in text:
                return TransferError(known, hint=hint, host=self._host, stage=STAGE)
        reason = done.stderr_tail(2) or f"exit {done.code}"
        return TransferError(f"unpacking failed: {reason}", host=self._host, stage=STAGE)


_REASONS = {
    "No space left on device": "free space in the host's workdir: llmctl hosts clean",
    "Disk quota exceeded": "free space in the host's workdir: llmctl hosts clean",
    "Permission denied": "set `workdir` in hosts.yaml to a folder that the user may write to",
    "Read-only file system": "set `workdir` in hosts.yaml to a folder that can be written to",
}


def push_tree(
    transport: Transport, tree: Tree | Callable[[], Tree], *, workdir: str, memory: PushMemory
) -> PushResult:
    """Push to one host only; see `Push`."""
    with Push(tree, memory, open_first=True) as push:
        return push.to(transport, workdir=workdir)
