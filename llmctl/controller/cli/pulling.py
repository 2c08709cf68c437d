"""Bring a run home, for `train` at its end and for `pull`."""

from __future__ import annotations

from pathlib import Path

from llmctl.controller.cli.session import Session
from llmctl.controller.collect.locate import Located
from llmctl.controller.collect.pull import Pulled, pull_run
from llmctl.controller.transport.pool import Connections
from llmctl.controller.ui.stages import Stages

FOLDER = "llmctl-runs"
"""Where runs are pulled to by default, below the current folder."""


def own_folder(path: Path) -> Path:
    """Make a folder of ours that neither git nor a push takes along; returns it."""
    path.mkdir(parents=True, exist_ok=True)
    ignore = path / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return path


def pull_home(
    session: Session,
    connections: Connections,
    located: Located,
    stages: Stages,
    *,
    which: str,
    dest: Path,
) -> Pulled:
    """Pull with a byte count that moves: one ✓ line, and one warning per host that could not be asked."""
    from llmctl.controller.ui.format import size

    with stages.stage("pull", "logs and checkpoints") as stage:
        pulled = pull_run(
            connections,
            located.hosts,
            session.archive,
            located.run_id,
            dest,
            checkpoints=which,
            progress=stage.add_bytes,
        )
        named = f" · {', '.join(pulled.checkpoints)}" if pulled.checkpoints else ""
        stage.text = f"{pulled.files} files ({size(pulled.bytes)}){named} → {dest}"
    for error in pulled.errors:
        session.screen.warn(f"not pulled from {error.line()}")
    return pulled
