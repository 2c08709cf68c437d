"""`llmctl train`: from a job file to a verdict."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.mapped import USUAL_AGE, ByMap, by_map, with_links
from llmctl.controller.cli.options import (
    HostsOption,
    JobOption,
    LimitOption,
    OutputOption,
    PoolOption,
    checked_output,
)
from llmctl.errors import LlmctlError
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.states import RunState

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.collect.locate import Located
    from llmctl.controller.config.models import JobFile
    from llmctl.controller.config.overrides import JobOverrides
    from llmctl.controller.config.types import RunConfig
    from llmctl.controller.execute.data import Seen
    from llmctl.controller.execute.prepare import Prepared
    from llmctl.controller.plan.plan import Plan
    from llmctl.controller.transport.pool import Connections
    from llmctl.controller.ui.stages import Stages

EPILOG = (
    "Examples:\n\n"
    "    llmctl train -f job.yaml\n\n"
    "    llmctl train -f job.yaml -j 2x4 --set recipe.steps=50\n\n"
    "    llmctl train -d -- train.py --epochs 3      (a script of yours, no job file needed)\n\n"
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
        outcome = run(
            session,
            config,
            detach=detach,
            dry_run=dry_run,
            pull=dest,
            allowed=allowed,
            map_age_s=map_age_s,
        )
    finally:
        session.close()
    raise typer.Exit(outcome.code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one `train` ended: its exit code, and the folder that the run was pulled to."""

    code: int
    pulled: Path | None = None


def run(
    session: Session,
    config: RunConfig,
    *,
    detach: bool,
    dry_run: bool,
    pull: Path | None,
    allowed: tuple[str, ...] = (),
    map_age_s: float = 0.0,
) -> Outcome:
    """Everything after the job is known. `demo` calls it too.

    Args:
        pull: folder below which the run is pulled at its end; None: it is not.
        allowed: what may differ between hosts (`plan.parity.FIELDS`).
        map_age_s: how old a network map may be to go by it; 0: by none.
    """
    from llmctl.controller.execute.data import look_beside
    from llmctl.controller.ui.stages import Stages

    session.screen.hide(config.secrets.to_hide())
    for note in config.notes:
        session.screen.warn(note)
    stages = Stages(session.screen)
    connections = session.connect(config.hosts)
    run_id = f"{config.job.name}-{secrets.token_hex(3)}"
    data = look_beside(config)
    try:
        prepared = _prepare(session, config, connections, stages, push=not dry_run, allowed=allowed)
        _show_data(session, data.result(), stages)
    except KeyboardInterrupt:
        session.screen.warn("interrupted; nothing was started")
        return Outcome(code=int(ExitCode.CANCELLED))
    found = by_map(session, config.hosts, prepared.facts, map_age_s)
    config = replace(config, hosts=found.hosts)
    plan = _plan(session, config, prepared, run_id, found)
    if dry_run:
        _show_plan(session, plan)
        return Outcome(code=0)
    session.screen.headline(plan.run_id, plan.summary)
    try:
        _start(session, config, plan, connections, stages)
    except KeyboardInterrupt:
        return Outcome(code=_interrupted(session, plan))
    if detach:
        return Outcome(code=_detached(session, plan))
    return _follow(session, config, plan, connections, stages, pull=pull)


def _config(
    session: Session, file: str | None, script: tuple[str, ...], overrides: JobOverrides
) -> RunConfig:
    from llmctl.controller.config.job import load_job, resolve

    path = Path(file or "job.yaml")
    if file is None and script and not path.exists():
        job, base = _job_of_script(script), Path.cwd()
    else:
        job, base = load_job(path), path.absolute().parent
        overrides = replace(overrides, script_args=script)
        if script and job.train.script and script[0].endswith(".py") and (base / script[0]).is_file():
            session.screen.warn(f"{script[0]} is given to {job.train.script} of {path} as an argument")
    return resolve(
        job,
        session.inventory,
        overrides=overrides,
        environ=os.environ,
        base=base,
        default_pool=session.settings.pool,
    )


def _job_of_script(script: tuple[str, ...]) -> JobFile:
    """`llmctl train -- train.py --lr 1`: the folder here is the code, the first word the script."""
    import re

    from llmctl.controller.config.models import CodeSection, JobFile, TrainSection

    stem = re.sub(r"[^a-z0-9]+", "-", Path(script[0]).stem.lower())[:40].strip("-") or "run"
    train_section = TrainSection(script=script[0], args=list(script[1:]))
    return JobFile(version=1, name=stem, code=CodeSection(path="."), train=train_section)


def _prepare(
    session: Session,
    config: RunConfig,
    connections: Connections,
    stages: Stages,
    *,
    push: bool,
    allowed: tuple[str, ...],
) -> Prepared:
    from llmctl.controller.execute.identity import Recogniser
    from llmctl.controller.execute.prepare import prepare
    from llmctl.controller.ui.summaries import code_line, hosts_line, tree_warnings

    with stages.stage("hosts", "connecting, checking and pushing") as stage:
        prepared = prepare(
            config,
            connections,
            session.archive,
            cache=session.cache,
            push=push,
            progress=lambda count: stage.add_bytes("", count),
            recogniser=Recogniser(session.book),
            allow_mismatch=allowed,
        )
        stage.text = hosts_line(config.hosts, prepared.facts)
    if prepared.alike:
        stages.line("parity", prepared.alike)
    if prepared.tree is not None:
        for line in tree_warnings(prepared.tree):
            session.screen.warn(line)
        stages.line("code", code_line(prepared))
    return prepared


def _show_data(session: Session, seen: Seen, stages: Stages) -> None:
    from llmctl.controller.ui.summaries import corpus_line

    for uri, manifest in seen.corpora.items():
        stages.line("data", corpus_line(uri, manifest))
    for note in seen.notes:
        session.screen.warn(note)


def _plan(session: Session, config: RunConfig, prepared: Prepared, run_id: str, found: ByMap) -> Plan:
    from llmctl.controller.config.corpus import corpus_vocabulary
    from llmctl.controller.plan.machines import Given
    from llmctl.controller.plan.plan import Identity, plan_run

    identity = Identity(
        run_id=run_id,
        attempt=1,
        created_at=time.time(),
        agent=session.archive.hash,
        tree=prepared.tree.hash if prepared.tree else None,
    )
    vocabulary = corpus_vocabulary(config.job, Path(config.base))
    plan = plan_run(config, prepared.facts, identity, vocabulary, with_links(Given(), found))
    notes = (*prepared.notes, *((found.warning,) if found.warning else ()))
    plan = replace(plan, network_why=found.text, warnings=(*notes, *plan.warnings))
    for warning in plan.warnings:
        session.screen.warn(warning)
    if plan.network_why:
        session.screen.say(f"network {plan.network_why}")
    if plan.layout_why:
        session.screen.say(f"layout {plan.layout_why}")
    return plan


def _show_plan(session: Session, plan: Plan) -> None:
    from llmctl.controller.ui.summaries import plan_lines

    if session.json:
        session.screen.document("plan", {"plan": plan})
        return
    for line in plan_lines(plan):
        session.screen.result(line)


def _start(session: Session, config: RunConfig, plan: Plan, connections: Connections, stages: Stages) -> None:
    """The ledger learns of the run first: a controller killed in the middle leaves a trace of it."""
    from llmctl.controller.collect.locate import record_of
    from llmctl.controller.execute.start import start
    from llmctl.controller.ledger.records import RunRecord

    node = plan.nodes[0]
    session.ledger.add(
        RunRecord(
            run_id=plan.run_id,
            name=config.job.name,
            created_at=node.created_at,
            hosts=tuple(record_of(host) for host in config.hosts),
            inventory_path=session.inventory.path,
            total=node.total_steps,
            job=node.job,
        )
    )
    with stages.stage("launch", f"{plan.run_id} on {len(plan.nodes)} hosts") as stage:
        try:
            start(plan, config, connections, session.archive)
        except LlmctlError as error:
            why = f"could not start: {error.line()}"
            session.ledger.update(
                plan.run_id, state=RunState.FAILED, reason=why, exit_code=int(ExitCode.JOB_FAILED)
            )
            raise
        over = f" over {node.launch.interface}" if node.launch.interface else ""
        master = f"master {plan.master_addr}:{plan.master_port}{over}"
        stage.text = f"attempt {plan.attempt} · {master}"


def _interrupted(session: Session, plan: Plan) -> int:
    """Ctrl-C while the agents are being started: some may run already."""
    session.screen.warn(f"interrupted while {plan.run_id} was starting; parts of it may run")
    session.screen.say(f"llmctl status {plan.run_id} · llmctl stop {plan.run_id}")
    return int(ExitCode.DETACHED)


def _detached(session: Session, plan: Plan) -> int:
    from llmctl.controller.cli.following import detach_hint

    if session.json:
        session.screen.document("train", {"run_id": plan.run_id, "state": "starting"})
    else:
        session.screen.result(plan.run_id)
        session.screen.say(f"detached; {plan.run_id} goes on.   {detach_hint(plan.run_id)}")
    return 0


def _follow(
    session: Session,
    config: RunConfig,
    plan: Plan,
    connections: Connections,
    stages: Stages,
    *,
    pull: Path | None,
) -> Outcome:
    from llmctl.controller.cli.following import follow_to_end
    from llmctl.controller.cli.verdict import detached, show_verdict
    from llmctl.controller.collect.locate import Located
    from llmctl.controller.ui.training import TrainingView
    from llmctl.wire.records import FollowRequest

    located = Located(run_id=plan.run_id, hosts=config.hosts)
    logs = config.job.train.script is not None
    names = [host.name for host in config.hosts]
    display = TrainingView(session.screen, total=plan.nodes[0].total_steps, logs=logs, hosts=names)
    try:
        view = follow_to_end(session, connections, located, display, FollowRequest(logs=logs))
    except KeyboardInterrupt:
        return Outcome(code=detached(session, plan.run_id))
    pulled = None
    if pull is not None:
        which = "none" if config.job.checkpoint.uri else "last"
        pulled = _bring_home(session, connections, located, stages, which=which, dest=pull / plan.run_id)
    return Outcome(code=show_verdict(session, view, kind="train"), pulled=pulled)


def _bring_home(
    session: Session,
    connections: Connections,
    located: Located,
    stages: Stages,
    *,
    which: str,
    dest: Path,
) -> Path | None:
    """Pull at the end of a run; where that fails, the run's verdict stands all the same."""
    from llmctl.controller.cli.pulling import own_folder, pull_home

    try:
        own_folder(dest.parent)
        pull_home(session, connections, located, stages, which=which, dest=dest)
        return dest
    except KeyboardInterrupt:
        why = "interrupted"
    except LlmctlError as error:
        why = error.line()
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
    session.screen.warn(f"not pulled: {why}")
    session.screen.say(f"  llmctl pull {located.run_id}")
    return None
