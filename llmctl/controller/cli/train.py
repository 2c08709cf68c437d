"""`llmctl train`: from a job file to a verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.mapped import USUAL_AGE
from llmctl.controller.cli.options import (
    HostsOption,
    JobOption,
    LimitOption,
    OutputOption,
    PoolOption,
    SuperviseOnOption,
    checked_output,
)

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.models import JobFile
    from llmctl.controller.config.overrides import JobOverrides
    from llmctl.controller.config.types import RunConfig

EPILOG = (
    "Examples:\n\n"
    "    llmctl train -f job.yaml\n\n"
    "    llmctl train -f job.yaml -j 2x4 --set recipe.steps=50\n\n"
    "    llmctl train -d -- train.py --epochs 3      (a script of yours, no job file needed)\n\n"
    "    llmctl train -d -f job.yaml --supervise-on a     (then close the laptop)\n\n"
    "Ctrl-C detaches: the job goes on; only `llmctl stop` ends it."
)


def register(app: typer.Typer) -> None:
    app.command("train", epilog=EPILOG)(train)


def train(
    script: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- ARGS...]", help="Arguments for the script; without a job file: the script."
        ),
    ] = None,
    file: JobOption = None,
    hosts: HostsOption = None,
    shape: Annotated[
        str | None, typer.Option("-j", metavar="NxM", help="N hosts, M ranks on each: 2x4.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="First part of the run's id.")] = None,
    pool: PoolOption = None,
    limit: LimitOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the job: recipe.steps=50."),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="Environment of the ranks.")
    ] = None,
    allow_mismatch: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-mismatch",
            metavar="WHAT,...",
            help="Go on though hosts differ in: python, torch, cuda, nccl, driver, code, data, env.",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Start and return; the run id on stdout.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the plan, start nothing.")
    ] = False,
    map_max_age: Annotated[
        str,
        typer.Option(
            "--map-max-age", metavar="AGE", help="Go by a `hosts map` not older than this; 0s: by none."
        ),
    ] = USUAL_AGE,
    self_check: Annotated[
        bool,
        typer.Option(
            "--self-check", help="Before the first step, compare the layout's gradient with one process's."
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Where another run holds a host: wait until it is over.")
    ] = False,
    share: Annotated[
        bool, typer.Option("--share", help="Start beside other runs: they share the host's cores and GPUs.")
    ] = False,
    supervise_on: SuperviseOnOption = None,
    pull: Annotated[
        bool, typer.Option("--pull/--no-pull", help="Bring logs and the last checkpoint back at the end.")
    ] = True,
    output: OutputOption = None,
) -> None:
    """Train on every host of a pool, watch it, and bring logs and checkpoints back.

    Checks the hosts, pushes the code, starts a node agent on each, which starts torchrun; then shows the
    run. The exit code is the run's verdict: 0 succeeded, 100 failed, 103 stopped, 130 detached by Ctrl-C.
    """
    from llmctl.controller.cli.hosts.clean import parse_age
    from llmctl.controller.cli.launching import Manner, run
    from llmctl.controller.cli.pulling import FOLDER
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.overrides import JobOverrides, parse_assignment, parse_shape
    from llmctl.controller.plan.parity import parse_allowed

    session = Session(hosts=hosts, output=checked_output(output))
    nodes, nproc = parse_shape(shape) if shape else (None, None)
    overrides = JobOverrides(
        nodes=nodes,
        nproc=nproc,
        name=name,
        pool=pool,
        env=dict(parse_assignment(text, "--env") for text in env or ()),
        set=(*(set_ or ()), *(("recipe.self_check=true",) if self_check else ())),
        limit=tuple(limit or ()),
    )
    allowed = parse_allowed(allow_mismatch or ())
    map_age_s = parse_age(map_max_age, "--map-max-age")
    config = _config(session, file, tuple(script or ()), overrides)
    try:
        dest = Path(FOLDER) if pull else None
        manner = Manner(
            detach=detach,
            dry_run=dry_run,
            pull=dest,
            allowed=allowed,
            map_age_s=map_age_s,
            wait=wait,
            share=share,
            supervise_on=supervise_on,
        )
        outcome = run(session, config, manner)
    finally:
        session.close()
    raise typer.Exit(outcome.code)


def _config(
    session: Session, file: str | None, script: tuple[str, ...], overrides: JobOverrides
) -> RunConfig:
    from llmctl.controller.config.job import load_job

    path = Path(file or "job.yaml")
    if file is None and script and not path.exists():
        job, base = _job_of_script(script), Path.cwd()
    else:
        job, base = load_job(path), path.absolute().parent
        overrides = replace(overrides, script_args=script)
        if script and job.train.script and script[0].endswith(".py") and (base / script[0]).is_file():
            session.screen.warn(f"{script[0]} is given to {job.train.script} of {path} as an argument")
    return session.resolve(job, base, overrides)


def _job_of_script(script: tuple[str, ...]) -> JobFile:
    """`llmctl train -- train.py --lr 1`: the folder here is the code, the first word the script."""
    import re

    from llmctl.controller.config.models import CodeSection, JobFile, TrainSection

    stem = re.sub(r"[^a-z0-9]+", "-", Path(script[0]).stem.lower())[:40].strip("-") or "run"
    train_section = TrainSection(script=script[0], args=list(script[1:]))
    return JobFile(version=1, name=stem, code=CodeSection(path="."), train=train_section)
