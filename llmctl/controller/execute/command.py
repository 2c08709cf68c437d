"""One command of the user's on many hosts at once: lines as they come, an end that leaves nothing behind."""

from __future__ import annotations

import codecs
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmctl.controller.config.types import Host
from llmctl.controller.transport.base import READ, Stream
from llmctl.controller.transport.pool import Connections
from llmctl.errors import DeadlineError, LlmctlError

STAGE = "exec"
MOST_KEPT = 1 << 20
"""Bytes of output that are kept per host for the result; its end."""

# A closed channel ends nothing on the host, so the command runs in a session of its own, and a watcher ends
# it when our side is gone: stdin is held open as long as somebody here waits. stderr joins stdout in order.
SCRIPT = r"""
exec 3<&0 </dev/null 2>&1
command -v setsid >/dev/null 2>&1 || exec "$@" 3<&-
setsid "$@" 3<&- & p=$!
(
  trap '' HUP INT
  read -r _ <&3
  trap '' TERM
  kill -TERM "-$p"
  n=0; while kill -0 "-$p" && [ $n -lt 20 ]; do sleep 0.1; n=$((n+1)); done
  kill -KILL "-$p"
) >/dev/null 2>&1 &
w=$!
wait "$p"; code=$?
kill "$w" 2>/dev/null
exit $code
"""

Line = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How it ended on one host.

    Attributes:
        code: exit status, 128+n where signal n ended it; None where it did not end or could not start.
        output: stdout and stderr together, at most the last MOST_KEPT bytes.
        error: unreachable, or ended because its time was up.
    """

    code: int | None = None
    signal: str | None = None
    output: str = ""
    seconds: float = 0.0
    error: LlmctlError | None = None


def run_everywhere(
    hosts: Sequence[Host],
    connections: Connections,
    command: Sequence[str],
    *,
    deadline_s: float,
    line: Line | None = None,
) -> dict[str, Ran]:
    """Run `command` on all hosts; one result each, in the hosts' order.

    Args:
        command: a program and its arguments; a single word is a line for the host's shell.
        line: told each line of output as it comes, from several threads.
    """
    argv = ["sh", "-c", SCRIPT, "llmctl-exec", *(["sh", "-c", *command] if len(command) == 1 else command)]

    def one(host: Host) -> Ran:
        started = time.monotonic()
        collected = _Output(host.name, line)
        try:
            transport = connections.get(host.name)
            with transport.open(argv, stage=STAGE) as stream:
                return _to_end(stream, collected, deadline_s, started)
        except LlmctlError as error:
            told = _timed_out(error, host.name, deadline_s)
            seconds = time.monotonic() - started
            return Ran(output=collected.text(), seconds=seconds, error=told)

    return _all_at_once(hosts, one, connections)


def _all_at_once(
    hosts: Sequence[Host], one: Callable[[Host], Ran], connections: Connections
) -> dict[str, Ran]:
    """Threads of our own: those of a pool are waited for on Ctrl-C, however long their commands take.

    Raises:
        KeyboardInterrupt: with the connections closed, so that the hosts end what they run.
    """
    results: dict[str, Ran] = {}

    def work(host: Host) -> None:
        results[host.name] = one(host)

    threads = [threading.Thread(target=work, args=(host,), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        connections.close()
        for thread in threads:
            thread.join(0.1)
        raise
    return {host.name: results[host.name] for host in hosts}


def _to_end(stream: Stream, collected: _Output, deadline_s: float, started: float) -> Ran:
    def left() -> float:
        return max(0.0, deadline_s - (time.monotonic() - started))

    while data := stream.read(READ, deadline_s=left()):
        collected.add(data)
    done = stream.wait(deadline_s=left())
    seconds = time.monotonic() - started
    return Ran(code=done.code, signal=done.signal, output=collected.text(), seconds=seconds)


def _timed_out(error: LlmctlError, host: str, deadline_s: float) -> LlmctlError:
    if not isinstance(error, DeadlineError):
        if error.host is None:
            error.host = host
        return error
    return DeadlineError(
        f"not done after {deadline_s:g} s; it was ended", host=host, stage=STAGE, hint="--timeout SECONDS"
    )


class _Output:
    """Whole lines for whoever listens, and the end of everything for the result."""

    def __init__(self, host: str, line: Line | None) -> None:
        self._host = host
        self._line = line
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""
        self._kept = bytearray()

    def add(self, data: bytes) -> None:
        self._kept += data
        del self._kept[:-MOST_KEPT]
        if self._line is None:
            return
        *lines, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        for line in lines:
            self._line(self._host, line)

    def text(self) -> str:
        """All that is kept; a last line without its end is told now."""
        if self._line is not None and self._rest:
            self._line(self._host, self._rest)
            self._rest = ""
        return self._kept.decode(errors="replace")
