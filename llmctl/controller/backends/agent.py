"""Speak to the node agent on one host: JSON in, JSON out, the verdict is the exit status.

The agent is a file named by its own hash. A call that finds it missing (another laptop's run, a new
version of llmctl) pushes it and asks again, so nobody has to install anything first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from llmctl import errors
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.backends.talk import EndedError, Talk
from llmctl.controller.config.types import Host
from llmctl.controller.transport.base import Completed, Stream, Transport
from llmctl.controller.transport.files import push_file
from llmctl.errors import HostErrors, LlmctlError, NotFoundError, PreflightError, RemoteCommandError
from llmctl.wire import codec
from llmctl.wire.agents import PsReply, PsRequest
from llmctl.wire.contact import ContactReply, ContactRequest
from llmctl.wire.drill import DrillReply, DrillRequest
from llmctl.wire.records import (
    CleanReport,
    CleanRequest,
    FilesReply,
    FollowRequest,
    Frame,
    StartReply,
    StartRequest,
    StatusReply,
    StopReport,
    StopRequest,
)

T = TypeVar("T")

MISSING = 97
NO_PYTHON = 127
UNKNOWN_RUN = 3

# $1 workdir, $2 interpreter, $3 agent hash, $4 its size, $5 a module to run instead of the agent itself, or
# nothing; then its arguments.
CALL = r"""
W=$1; PY=$2; A=$3; SIZE=$4; M=$5; shift 5
case $W in "~") W=$HOME;; "~/"*) W=$HOME/${W#??};; esac
case $PY in "~/"*) PY=$HOME/${PY#??};; python3) [ ! -x "$W/python/default" ] || PY=$W/python/default;; esac
HAVE=$({ wc -c <"$W/agent/$A.pyz"; } 2>/dev/null)
[ ${HAVE:-0} -eq "$SIZE" ] || { printf '%s\n' "$W" >&2; exit 97; }
if [ -n "$M" ]; then
  cd "$W/agent" && PYTHONPATH=$W/agent/$A.pyz${PYTHONPATH:+:$PYTHONPATH} exec "$PY" -u -m "$M" "$@"
fi
exec "$PY" -I "$W/agent/$A.pyz" --workdir "$W" "$@"
"""


class AgentClient:
    """The node agent of one host, through an open transport.

    Every method raises HostUnreachableError and DeadlineError like the transport, NotFoundError for a
    run that the host doesn't have, PreflightError where the interpreter does not start, and whatever
    LlmctlError the agent itself raised, with this host's name on it.
    """

    def __init__(self, transport: Transport, host: Host, archive: AgentArchive) -> None:
        self._transport = transport
        self._host = host
        self._archive = archive

    def start(self, request: StartRequest, *, deadline_s: float = 60.0) -> StartReply:
        """Start the node; returns once its agent holds the lease. Secrets travel on stdin only."""
        return self._call(StartReply, ["start"], codec.dumps(request), deadline_s, "launch")

    def status(self, run_id: str | None = None, *, deadline_s: float = 20.0) -> StatusReply:
        """One run's state on this host, or that of every run, newest first."""
        return self._call(StatusReply, ["status", *([run_id] if run_id else [])], "", deadline_s, "status")

    def stop(self, run_id: str, request: StopRequest) -> StopReport:
        """End the node and prove that nothing of it is left; waits for the grace time."""
        deadline_s = request.grace_s + 30.0
        return self._call(StopReport, ["stop", run_id], codec.dumps(request), deadline_s, "stop")

    def contact(self, run_id: str, request: ContactRequest, *, deadline_s: float = 8.0) -> ContactReply:
        """One beat of a supervisor. Raises ReplacedError too: another supervisor acts for the run."""
        return self._call(ContactReply, ["contact", run_id], codec.dumps(request), deadline_s, "contact")

    def drill(self, run_id: str, request: DrillRequest) -> DrillReply:
        """Break a part of the run on this host once it has come to a step; waits for `request.wait_s`."""
        deadline_s = request.wait_s + 30.0
        return self._call(DrillReply, ["drill", run_id], codec.dumps(request), deadline_s, "drill")

    def files(self, run_id: str, *, deadline_s: float = 60.0) -> FilesReply:
        """What of a run can be pulled from this host."""
        return self._call(FilesReply, ["files", run_id], "", deadline_s, "pull")

    def clean(self, request: CleanRequest, *, deadline_s: float = 600.0) -> CleanReport:
        """Remove what no run on this host needs any more."""
        return self._call(CleanReport, ["clean"], codec.dumps(request), deadline_s, "clean")

    def ps(self, request: PsRequest, *, deadline_s: float = 60.0) -> PsReply:
        """The runs that hold this host, and orphans."""
        return self._call(PsReply, ["ps"], codec.dumps(request), deadline_s, "ps")

    @contextmanager
    def follow(self, run_id: str, request: FollowRequest) -> Iterator[Iterator[Frame]]:
        """Frames of a run until its end. A beat is due every 2 s; 15 s of silence is a lost connection."""
        for pushed in (False, True):
            with self._transport.open(self._argv(["follow", run_id]), stage="follow") as stream:
                stream.write(codec.dumps(request).encode(), deadline_s=15.0)
                stream.end_input()
                first = stream.read(1 << 16, deadline_s=30.0)
                if first:
                    yield self._frames(stream, first)
                    return
                done = stream.wait(deadline_s=15.0)
            self._judge(done, "follow", push_missing=not pushed)

    def converse(
        self, verb: list[str], hello: type[T], *, stage: str, module: str = "", deadline_s: float = 60.0
    ) -> tuple[Talk, T]:
        """Start a verb that is spoken with line by line, and hear its first line. The caller closes the talk.

        Args:
            module: run this module of the archive instead, with the packages of the host's interpreter.
        """
        for pushed in (False, True):
            stream = self._transport.open(self._argv(verb, module), stage=stage)
            talk = Talk(stream, host=self._host.name, stage=stage)
            try:
                return talk, talk.hear(hello, deadline_s=deadline_s)
            except EndedError as ended:
                talk.close()
                self._judge(ended.done, stage, push_missing=not pushed)
            except BaseException:
                talk.close()
                raise
        raise RemoteCommandError("it ended without a word", host=self._host.name, stage=stage)

    def ask(
        self, module: str, verb: str, body: str, reply: type[T], *, stage: str, deadline_s: float = 60.0
    ) -> T:
        """Run a module of the archive with the packages of the host's interpreter: JSON in, JSON out."""
        return self._call(reply, [verb], body, deadline_s, stage, module)

    def ended(self, error: EndedError, stage: str) -> LlmctlError:
        """Why a conversation ended early."""
        return self._error(error.done, stage)

    def _frames(self, stream: Stream, data: bytes) -> Iterator[Frame]:
        while data:
            *lines, rest = data.split(b"\n")
            for line in lines:
                yield codec.loads(Frame, line)
            more = stream.read(1 << 18, deadline_s=15.0)
            if not more:
                break
            data = rest + more
        self._judge(stream.wait(deadline_s=15.0), "follow", push_missing=False)

    def _call(
        self, reply: type[T], verb: list[str], body: str, deadline_s: float, stage: str, module: str = ""
    ) -> T:
        argv = self._argv(verb, module)
        done = self._transport.run(argv, stdin=body.encode(), deadline_s=deadline_s, stage=stage)
        if self._judge(done, stage, push_missing=True):
            done = self._transport.run(argv, stdin=body.encode(), deadline_s=deadline_s, stage=stage)
            self._judge(done, stage, push_missing=False)
        return codec.loads(reply, done.stdout)

    def _argv(self, verb: list[str], module: str = "") -> list[str]:
        host, archive = self._host, self._archive
        fixed = [host.workdir, host.python, archive.hash, str(len(archive.data)), module]
        return ["sh", "-c", CALL, "llmctl", *fixed, *verb]

    def _judge(self, done: Completed, stage: str, *, push_missing: bool) -> bool:
        """True where the agent was missing and has now been pushed; raises for every other failure."""
        if done.ok:
            return False
        if done.code == MISSING and push_missing:
            workdir = done.stderr.decode(errors="replace").strip().splitlines()[-1]
            dest = f"{workdir}/agent/{self._archive.hash}.pyz"
            push_file(self._transport, self._archive.data, dest, deadline_s=60.0)
            return True
        raise self._error(done, stage)

    def _error(self, done: Completed, stage: str) -> LlmctlError:
        told = _told(done.stderr)
        if told is not None:
            kind = getattr(errors, str(told.get("error")), RemoteCommandError)
            if not (isinstance(kind, type) and issubclass(kind, LlmctlError)) or kind is HostErrors:
                kind = RemoteCommandError
            return kind(str(told.get("message")), hint=told.get("hint"), host=self._host.name, stage=stage)
        if done.code == UNKNOWN_RUN:
            return NotFoundError("no such run on this host", host=self._host.name, stage=stage)
        if done.code in (NO_PYTHON, 126):
            return PreflightError(
                f"python does not start: {done.stderr_tail(1)} ({self._host.python})",
                host=self._host.name,
                stage=stage,
                hint=f"set `python:` for {self._host.name} in hosts.yaml",
            )
        ended = f"ended by {done.signal}" if done.signal else f"exit {done.code}"
        return RemoteCommandError(
            f"the node agent failed ({ended}): {done.stderr_tail()}", host=self._host.name, stage=stage
        )


def _told(stderr: bytes) -> dict[str, Any] | None:
    """The agent's own error: the last line of stderr, if it is one of its JSON objects."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        return None
    try:
        document = json.loads(lines[-1])
    except ValueError:
        return None
    return document if isinstance(document, dict) and "message" in document else None
