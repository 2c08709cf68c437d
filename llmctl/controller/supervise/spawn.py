"""A supervisor as a process of its own, which outlives the command that starts it."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmctl.controller.supervise.charge import Mandate, dump
from llmctl.errors import ProvisionError

VERB = "supervise"
FOLDER = "supervisors"


def new_holder() -> str:
    """A name that no other supervisor has."""
    return f"{socket.gethostname()}-{secrets.token_hex(6)}"


def log_of(state_dir: str | Path, run_id: str) -> Path:
    """Where the supervisor of a run says what it does."""
    return Path(state_dir) / FOLDER / f"{run_id}.log"


def spawn(
    mandate: Mandate,
    state_dir: str | Path,
    *,
    env: Mapping[str, str] | None = None,
    keep: Sequence[int] = (),
    cwd: str | Path | None = None,
) -> int:
    """Start it; its pid. It has a session of its own, and nothing of ours but the environment.

    Args:
        env: its whole environment instead of ours. keep: files that stay open in it.

    Raises:
        ProvisionError: its log can't be written, or it does not start.
    """
    path = log_of(state_dir, mandate.charge.run_id)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "llmctl", VERB, mandate.charge.run_id],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=env,
                pass_fds=keep,
                cwd=cwd,
            )
        finally:
            os.close(log)
        if process.stdin is not None:
            with process.stdin as pipe:
                pipe.write(dump(mandate).encode())
    except OSError as error:
        raise ProvisionError(f"no supervisor: {error.strerror or error}", stage="supervise") from error
    return process.pid
