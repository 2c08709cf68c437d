"""`follow`: the run's growing files as frames, from byte offsets, until the node has ended.

The reader owns the position: it says what it has (`offsets`) and gets every later byte exactly once, so a
cut connection costs nothing but the time to come back.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from llmctl.errors import NotFoundError
from llmctl.node import rundir, tail
from llmctl.node.frames import FrameWriter, ReaderGone
from llmctl.wire.layout import RunLayout
from llmctl.wire.records import FollowRequest, Frame
from llmctl.wire.states import NodeState

POLL_S = 0.1
HEARTBEAT_S = 1.5
LARGEST_TEXT = 64 * 1024
_PER_ROUND = 16
"""Frames per file and round: a chatty rank must not keep the others' lines waiting."""

_ATTEMPT = re.compile(r"attempt-(\d+)\Z")
_RANK_LOG = re.compile(r"rank-(\d+)\.log\Z")


def follow(workdir: str, run_id: str, request: FollowRequest) -> None:
    """Write frames to stdout until the end, or until nobody reads them. Raises NotFoundError."""
    run = rundir.find(rundir.host_layout(workdir), run_id)
    try:
        _Follower(run, request, FrameWriter(1)).run()
    except ReaderGone:
        return


@dataclass(frozen=True)
class _Moment:
    """What one round starts from, read before any file: a file can't grow after a verdict."""

    state: NodeState
    ended: bool


class _Follower:
    def __init__(self, run: RunLayout, request: FollowRequest, out: FrameWriter) -> None:
        self._run = run
        self._request = request
        self._out = out
        self._offsets = dict(request.offsets)

    def run(self) -> None:
        while True:
            moment = self._moment()
            last_round = moment.ended or not self._request.until_end
            more = self._send_files(moment, drain=last_round)
            if last_round:
                break
            if not more:
                self._rest(moment)
        self._out.send(Frame(now=time.time(), state=moment.state, end=True))

    def _moment(self) -> _Moment:
        view = rundir.look(self._run)
        if view is None:
            raise NotFoundError(f"nothing was started in {self._run.root}")
        earlier = self._request.attempt is not None and self._request.attempt < view.spec.attempt
        return _Moment(state=view.state, ended=view.exit is not None or earlier)

    def _rest(self, moment: _Moment) -> None:
        self._out.check()
        if time.monotonic() - self._out.last_sent >= HEARTBEAT_S:
            self._out.send(Frame(now=time.time(), state=moment.state))
        time.sleep(POLL_S)

    # --- files ---

    def _send_files(self, moment: _Moment, *, drain: bool) -> bool:
        """Send what is new; whether some file had more than its share of this round."""
        more = False
        for name in self._files():
            path = os.path.join(self._run.root, name)
            offset = self._start(name, path)
            for count, (text, end) in enumerate(_chunks(path, offset, to_end=moment.ended)):
                if count == _PER_ROUND and not drain:
                    more = True
                    break
                frame = Frame(now=time.time(), state=moment.state, file=name, offset=end, text=text)
                self._out.send(frame)
                self._offsets[name] = end
        return more

    def _start(self, name: str, path: str) -> int:
        if name not in self._offsets:
            tailed = self._request.tail >= 0 and name.endswith(".log")
            self._offsets[name] = tail.offset_of_last_lines(path, self._request.tail) if tailed else 0
        return self._offsets[name]

    def _files(self) -> Iterator[str]:
        """Those asked for that exist now, relative to the run directory."""
        yield "events.jsonl"
        for attempt in self._attempts():
            folder = f"attempt-{attempt}"
            yield f"{folder}/metrics.jsonl"
            if self._request.logs:
                names = os.listdir(os.path.join(self._run.root, folder))
                yield from (f"{folder}/{name}" for name in sorted(names, key=_by_rank) if self._wanted(name))

    def _attempts(self) -> list[int]:
        found = [int(match[1]) for name in os.listdir(self._run.root) if (match := _ATTEMPT.match(name))]
        only = self._request.attempt
        return sorted(number for number in found if only in (None, number))

    def _wanted(self, name: str) -> bool:
        rank = _RANK_LOG.match(name)
        if rank is None:
            return name == "launcher.log" and not self._request.ranks
        return not self._request.ranks or int(rank[1]) in self._request.ranks


def _by_rank(name: str) -> tuple[int, str]:
    rank = _RANK_LOG.match(name)
    return (int(rank[1]) if rank else -1, name)


def _chunks(path: str, offset: int, *, to_end: bool) -> Iterator[tuple[str, int]]:
    """(text, offset after it) of `path` from `offset` to its present end, in frames of whole lines.

    `to_end`: a last line without its newline is due as well. A missing file has nothing.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - a missing file is no error
    except OSError:
        return
    with file:
        size = os.fstat(file.fileno()).st_size
        while offset < size:
            data = os.pread(file.fileno(), min(LARGEST_TEXT, size - offset), offset)
            length = whole_part(
                data, full=len(data) == LARGEST_TEXT, to_end=to_end and offset + len(data) == size
            )
            if length == 0:
                return
            offset += length
            yield data[:length].decode(errors="replace"), offset


def whole_part(data: bytes, *, full: bool, to_end: bool) -> int:
    """How many bytes of `data` may be sent now.

    Up to the last line end (a carriage return ends a progress bar's line). A line that fills the frame is
    cut, but not inside a UTF-8 character; the last line of a run is sent as it is.
    """
    if to_end:
        return len(data)
    lines = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    if lines or not full:
        return lines
    return len(data) - _cut_character(data)


def _cut_character(data: bytes) -> int:
    """Bytes of a UTF-8 character that begins near the end of `data` and goes on after it."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if length > back else 0
        if byte < 0x80:
            return 0
    return 0
