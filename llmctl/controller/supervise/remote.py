"""The far end of `--supervise-on`: run by a host's own Python, out of an archive of this package.

`python -m llmctl.controller.supervise.remote look|leave`, JSON in and out, errors as the node agent tells
them. It must say by itself what that Python lacks: so nothing but the standard library is imported before
that is known, and nothing here is newer than Python 3.9.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from llmctl.controller.config.types import Host
    from llmctl.controller.transport.pool import Connections

OLDEST = (3, 11)

NEEDED = {
    "typer": "typer>=0.12",
    "rich": "rich>=13.7",
    "paramiko": "paramiko>=3.4",
    "pydantic": "pydantic>=2.7",
    "yaml": "PyYAML>=6.0",
    "zstandard": "zstandard>=0.22",
    "fsspec": "fsspec>=2024.6",
    "numpy": "numpy>=1.26",
    "tokenizers": "tokenizers>=0.19",
}
"""What llmctl itself depends on: module -> requirement, as in pyproject.toml."""

ARCHIVE = "llmctl.pyz"
AGENT_SOCKET = "SSH_AUTH_SOCK"
"""Of an ssh-agent, which may end with somebody's login: a supervisor's keys must lie on its host."""


def main(argv: list[str]) -> int:
    """Run one verb; returns the exit status."""
    lacking = lacks()
    if lacking:
        _reply({"python": sys.executable, "lacks": lacking})
        return 0
    from llmctl.errors import LlmctlError

    os.environ.pop(AGENT_SOCKET, None)
    told: dict[str, Any] = json.loads(sys.stdin.read())
    try:
        _reply({"python": sys.executable, **(leave(told) if argv == ["leave"] else look(told))})
    except LlmctlError as error:
        _complain(type(error).__name__, error.message, error.hint)
        return 1
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _complain("ProvisionError", f"{error.strerror or error}{where}", None)
        return 1
    return 0


def lacks() -> list[str]:
    """Requirements that this Python does not have."""
    if sys.version_info < OLDEST:
        return [f"Python {OLDEST[0]}.{OLDEST[1]}"]
    return [wanted for module, wanted in NEEDED.items() if importlib.util.find_spec(module) is None]


def look(told: dict[str, Any]) -> dict[str, Any]:
    """Log in to each host from here, as the supervisor will; what went wrong, by host."""
    from llmctl.controller.config.types import Host
    from llmctl.controller.transport.pool import Connections
    from llmctl.errors import LlmctlError
    from llmctl.wire import codec

    hosts = [codec.decode(Host, host) for host in told["hosts"]]
    faults = []
    with Connections(hosts, connect_timeout_s=told["timeout_s"], pinned=told["pins"]) as connections:
        results = connections.each(hosts, lambda host: _enter(connections, host))
    for name, error in results.items():
        if isinstance(error, LlmctlError):
            faults.append({"host": name, "error": type(error).__name__, "message": error.message})
    return {"faults": faults}


def _enter(connections: Connections, host: Host) -> None:
    from llmctl.errors import RemoteCommandError

    done = connections.get(host.name).run(["true"], deadline_s=15.0, stage="supervise")
    if not done.ok:
        raise RemoteCommandError(f"a command fails there: {done.stderr_tail(1) or f'exit {done.code}'}")


def leave(told: dict[str, Any]) -> dict[str, Any]:
    """Start the supervisor, in a folder of its own that stays locked while it lives."""
    from llmctl.controller.supervise.charge import load
    from llmctl.controller.supervise.spawn import log_of, spawn
    from llmctl.wire.layout import SUPERVISOR_LOCK, HostLayout

    mandate = load(told["mandate"])
    run_id = mandate.charge.run_id
    folder = Path(HostLayout(str(Path(told["workdir"]).expanduser())).supervisor(run_id))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    archive = _own_copy(folder)
    lock = os.open(folder / SUPERVISOR_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Shared: one that is being replaced may not have noticed yet.
        fcntl.flock(lock, fcntl.LOCK_SH)
        pid = spawn(mandate, folder, env=_environment(folder, archive), keep=(lock,), cwd=folder)
    finally:
        os.close(lock)
    return {"pid": pid, "log": str(log_of(folder, run_id))}


def _own_copy(folder: Path) -> Path:
    """The archive that this runs from: `hosts clean` may take the shared one away below a long run."""
    shared = next(path for path in Path(__file__).parents if path.is_file())
    copy = folder / ARCHIVE
    beside = folder / f"{ARCHIVE}.{os.getpid()}"
    beside.write_bytes(shared.read_bytes())
    beside.replace(copy)
    return copy


def _environment(folder: Path, archive: Path) -> dict[str, str]:
    """Ours, but that its code is the copy's, and that what it remembers lies in its folder."""
    more = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)[1:] if path]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(archive), *more]),
        "LLMCTL_STATE_DIR": str(folder),
    }


def _reply(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _complain(kind: str, message: str, hint: str | None) -> None:
    sys.stderr.write(json.dumps({"error": kind, "message": message, "hint": hint}) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
