"""`llmctl demo`: the main job on this machine alone, from text to a sample of the trained model."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session

EPILOG = "Examples:\n\n    llmctl demo\n\n    llmctl demo --data ~/texts --steps 500"
PROMPT = "def "
SAMPLE_BYTES = 240
SAMPLE_DEADLINE_S = 120.0


def register(app: typer.Typer) -> None:
    app.command("demo", epilog=EPILOG)(demo)


def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where everything goes.")] = Path(
        "llmctl-demo"
    ),
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="SRC", help="Text to train on; else Python's own sources."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps.")] = None,
) -> None:
    """Train a small model on this machine as if it were two hosts; no SSH, no root, about two minutes.

    The same code path as over SSH: two hosts with a workdir each, an agent and torchrun on each, one
    data-parallel run over both. Then logs and checkpoint are pulled and the model writes some text.
    """
    from llmctl.controller.cli.pulling import own_folder
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.templates import lay_down

    _require_torch()
    own_folder(folder)
    lay_down("demo", folder, values={"PYTHON": sys.executable}, keep=True)
    session = Session(hosts=str((folder / "hosts.yaml").absolute()))
    try:
        code = _demo(session, folder, data or [], steps)
    finally:
        session.close()
    raise typer.Exit(code)


def _demo(session: Session, folder: Path, data: list[str], steps: int | None) -> int:
    from llmctl.controller.cli.data import shard_with_progress
    from llmctl.controller.cli.launching import Manner, run
    from llmctl.controller.config.job import load_job, resolve
    from llmctl.controller.config.overrides import JobOverrides
    from llmctl.controller.ui.format import rate
    from llmctl.controller.ui.stages import Stages

    stages = Stages(session.screen)
    with stages.stage("data", "tokenising") as stage:
        manifest = shard_with_progress(
            session, data or _python_sources(), str(folder / "shards"), overwrite=True
        )
        stage.text = (
            f"{rate(manifest.tokens)} tokens of {manifest.documents} documents in {folder / 'shards'}"
        )
    changes = (f"recipe.steps={steps}",) if steps else ()
    config = resolve(
        load_job(folder / "job.yaml"),
        session.inventory,
        overrides=JobOverrides(set=changes),
        environ=os.environ,
        base=folder,
    )
    outcome = run(session, config, Manner(pull=folder / "pulled"))
    if outcome.code == 0 and outcome.pulled is not None:
        _show_result(session, outcome.pulled)
    return outcome.code


def _show_result(session: Session, pulled: Path) -> None:
    """What was learned: losses of the run, and text from the checkpoint that was pulled."""
    from llmctl.controller.ui.losses import loss_table, read_steps

    session.screen.out.print(loss_table(read_steps(pulled)))
    checkpoints = sorted((pulled / "checkpoints").glob("step-*"))
    if checkpoints:
        session.screen.result(f"\n{_sample(checkpoints[-1])}\n")
        session.screen.say(f"that was sampled from {checkpoints[-1]}")
    session.screen.say("next: llmctl status · llmctl logs · llmctl init")


def _sample(checkpoint: Path) -> str:
    """Text from the checkpoint, by a process of its own: this one never imports torch."""
    import subprocess

    from llmctl.errors import DeadlineError, JobFailedError

    command = [sys.executable, "-m", "llmctl.worker.sample", "--checkpoint", str(checkpoint)]
    command += ["--prompt", PROMPT, "--max-new", str(SAMPLE_BYTES), "--temperature", "0.7", "--seed", "1"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SAMPLE_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"no sample after {SAMPLE_DEADLINE_S:g} s", stage="sample") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise JobFailedError("".join(last) or f"exit {done.returncode}", stage="sample")
    return done.stdout.decode(errors="replace").rstrip("\n")


def _python_sources() -> list[str]:
    """The standard library's own .py files, without what was installed beside it."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "__pycache__", "test", "lib2to3"}
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name not in skipped]
    return [str(root / "*.py"), *(str(path / "**" / "*.py") for path in folders if any(path.rglob("*.py")))]


def _require_torch() -> None:
    import importlib.util

    from llmctl.errors import PreflightError

    if importlib.util.find_spec("torch") is None:
        raise PreflightError(
            f"this Python has no torch ({sys.executable})",
            stage="demo",
            hint=f"{sys.executable} -m pip install 'llmctl[worker]'   or, in a clone: make demo",
        )
