"""The agent's command line: `PYTHON AGENT.pyz VERB [--workdir DIR] [RUN]`, JSON in, JSON out.

Exit status 0 with one JSON document on stdout (`follow`: one per line); else 1, or 3 for an unknown run,
with one line of JSON on stderr: {"error": class, "message": …, "hint": …}. Every verb imports only what it
needs: a command over SSH is waited for by a person.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

FAILED = 1
UNKNOWN_RUN = 3


def main(argv: list[str]) -> int:
    """Run one verb; returns the exit status."""
    if argv[:1] == ["rank"]:
        import os

        from llmctl.node import rank

        os._exit(rank.main(argv[1:]))  # no flush at the end: on a full disk it would change the code
    return _answer(argv)


def _answer(argv: list[str]) -> int:
    from llmctl.errors import LlmctlError, NotFoundError

    try:
        _dispatch(argv)
    except LlmctlError as error:
        _complain(type(error).__name__, error.message, error.hint)
        return UNKNOWN_RUN if isinstance(error, NotFoundError) else FAILED
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _complain("ProvisionError", f"{error.strerror or error}{where}", None)
        return FAILED
    return 0


def _dispatch(argv: list[str]) -> None:
    verb, workdir, run_id = _parse(argv)
    if not (_about_a_run(verb, workdir, run_id) or _about_this_host(verb, workdir)):
        raise _usage(f"unknown verb {verb!r}")


def _about_a_run(verb: str, workdir: str, run_id: str | None) -> bool:
    """Whether `verb` was one of those that are about a run; then it is done."""
    if verb == "start":
        from llmctl.node.start import start
        from llmctl.wire.records import StartRequest

        _reply(start(_request(StartRequest)))
    elif verb == "status":
        from llmctl.node.status import status

        _reply(status(workdir, run_id))
    elif verb == "files":
        from llmctl.node.listing import files

        _reply(files(workdir, _needed(run_id)))
    elif verb == "stop":
        from llmctl.node.stop import stop
        from llmctl.wire.records import StopRequest

        _reply(stop(workdir, _needed(run_id), _request(StopRequest)))
    elif verb == "contact":
        from llmctl.node.contact import contact
        from llmctl.wire.contact import ContactRequest

        _reply(contact(workdir, _needed(run_id), _request(ContactRequest)))
    elif verb == "drill":
        from llmctl.node.drill import drill
        from llmctl.wire.drill import DrillRequest

        _reply(drill(workdir, _needed(run_id), _request(DrillRequest)))
    elif verb == "follow":
        from llmctl.node.follow import follow
        from llmctl.wire.records import FollowRequest

        follow(workdir, _needed(run_id), _request(FollowRequest))
    else:
        return False
    return True


def _about_this_host(verb: str, workdir: str) -> bool:
    """Whether `verb` was one of those that are about the host and its folder; then it is done."""
    if verb == "ps":
        from llmctl.node.agents import ps
        from llmctl.wire.agents import PsRequest

        _reply(ps(workdir, _request(PsRequest)))
    elif verb == "clean":
        from llmctl.node.clean import clean
        from llmctl.wire.records import CleanRequest

        _reply(clean(workdir, _request(CleanRequest)))
    elif verb == "environment":
        from llmctl.node.environment import environment
        from llmctl.wire.environments import EnvRequest

        _reply(environment(workdir, _request(EnvRequest)))
    elif verb == "wheels":
        from llmctl.node.wheels import have
        from llmctl.wire.environments import HaveRequest

        _reply(have(workdir, _request(HaveRequest)))
    elif verb == "relay":
        from llmctl.node.relay import relay

        relay()
    elif verb == "measure":
        from llmctl.node.measure import measure

        measure()
    else:
        return False
    return True


def _parse(argv: list[str]) -> tuple[str, str, str | None]:
    """(verb, workdir, run)."""
    words = list(argv)
    workdir = "~/.llmctl"
    if "--workdir" in words:
        at = words.index("--workdir")
        if at + 1 >= len(words):
            raise _usage("--workdir needs a folder")
        workdir = words[at + 1]
        del words[at : at + 2]
    if not 1 <= len(words) <= 2:
        raise _usage("usage: VERB [--workdir DIR] [RUN]")
    return words[0], workdir, words[1] if len(words) == 2 else None


def _needed(run_id: str | None) -> str:
    if run_id is None:
        raise _usage("which run?")
    return run_id


def _usage(message: str) -> Exception:
    from llmctl.errors import ConfigError

    return ConfigError(message)


def _request(kind: type[T]) -> T:
    from llmctl.wire.codec import loads

    return loads(kind, sys.stdin.buffer.read())


def _reply(value: object) -> None:
    from llmctl.wire.codec import dumps

    sys.stdout.write(dumps(value) + "\n")
    sys.stdout.flush()


def _complain(error: str, message: str, hint: str | None) -> None:
    import json

    sys.stderr.write(json.dumps({"error": error, "message": message, "hint": hint}) + "\n")
