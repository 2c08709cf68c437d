"""Start an inference run: the way that `batch` and `serve` have in common, from a job file to live agents."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmctl.errors import LlmctlError
from llmctl.wire import environment
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.states import RunState

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.overrides import JobOverrides
    from llmctl.controller.config.types import RunConfig
    from llmctl.controller.plan.inference import Work
    from llmctl.controller.plan.plan import Plan
    from llmctl.controller.transport.pool import Connections
    from llmctl.controller.ui.stages import Stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A run whose agents live."""

    config: RunConfig
    plan: Plan
    connections: Connections


def overrides_of(
    shape: str | None,
    name: str | None,
    pool: str | None,
    limit: list[str] | None,
    set_: list[str] | None,
    env: list[str] | None,
) -> JobOverrides:
    """The shared flags as overrides. Raises ConfigError."""
    from llmctl.controller.config.overrides import JobOverrides, parse_assignment, parse_shape

    nodes, nproc = parse_shape(shape) if shape else (None, None)
    return JobOverrides(
        nodes=nodes,
        nproc=nproc,
        name=name,
        pool=pool,
        env=dict(parse_assignment(text, "--env") for text in env or ()),
        set=tuple(set_ or ()),
        limit=tuple(limit or ()),
    )


def configured(
    session: Session, file: str | None, overrides: JobOverrides, *, uris: tuple[str, ...] = ()
) -> RunConfig:
    """The job for an inference, with the secret by which its processes know each other.

    Args:
        uris: stores beside the model's that the hosts need accounts for.
    """
    from llmctl.controller.config.job import load_job

    path = Path(file or "job.yaml")
    base = path.absolute().parent
    config = session.resolve(load_job(path), base, overrides, inference=True, uris=uris)
    config.secrets[environment.INFER_TOKEN] = secrets.token_hex(32)
    return config


def launch(session: Session, config: RunConfig, work: Work, *, dry_run: bool) -> Launched | None:
    """Check the hosts, plan, start the agents; None after a dry run, whose plan was shown.

    Raises:
        LlmctlError: nothing runs.
        typer.Exit: Ctrl-C, with what it means at that moment told.
    """
    from llmctl.controller.plan.inference import summary
    from llmctl.controller.plan.vllm import check_job
    from llmctl.controller.ui.stages import Stages

    check_job(config.job, work.batch.task if work.batch else None)
    session.screen.hide(config.secrets.to_hide())
    for note in config.notes:
        session.screen.warn(note)
    stages = Stages(session.screen)
    connections = session.connect(config.hosts)
    try:
        plan = _plan(session, config, connections, stages, work, push=not dry_run)
    except KeyboardInterrupt:
        session.screen.warn("interrupted; nothing was started")
        raise typer.Exit(ExitCode.CANCELLED) from None
    if dry_run:
        _show_plan(session, plan)
        return None
    spec = plan.nodes[0].infer
    session.screen.headline(plan.run_id, summary(spec) if spec else plan.summary)
    try:
        _start(session, config, plan, connections, stages)
    except KeyboardInterrupt:
        session.screen.warn(f"interrupted while {plan.run_id} was starting; parts of it may run")
        session.screen.say(f"llmctl status {plan.run_id} · llmctl stop {plan.run_id}")
        raise typer.Exit(ExitCode.DETACHED) from None
    return Launched(config=config, plan=plan, connections=connections)


def _plan(
    session: Session, config: RunConfig, connections: Connections, stages: Stages, work: Work, *, push: bool
) -> Plan:
    from llmctl.controller.execute.data import require_readable
    from llmctl.controller.execute.identity import Recogniser
    from llmctl.controller.execute.prepare import prepare
    from llmctl.controller.plan.inference import plan_inference
    from llmctl.controller.plan.plan import Identity
    from llmctl.controller.ui.summaries import hosts_line

    with stages.stage("hosts", "connecting and checking") as stage:
        prepared = prepare(
            config,
            connections,
            session.archive,
            cache=session.cache,
            push=push,
            recogniser=Recogniser(session.book),
        )
        if work.batch:
            first = config.hosts[0]
            require_readable(connections.get(first.name), first, work.batch.input)
        stage.text = hosts_line(config.hosts, prepared.facts)
    identity = Identity(
        run_id=f"{config.job.name}-{secrets.token_hex(3)}",
        attempt=1,
        created_at=time.time(),
        agent=session.archive.hash,
        tree=None,
    )
    plan = plan_inference(config, prepared.facts, identity, work)
    plan = replace(plan, warnings=(*prepared.notes, *plan.warnings))
    for warning in plan.warnings:
        session.screen.warn(warning)
    return plan


def _show_plan(session: Session, plan: Plan) -> None:
    from llmctl.controller.ui.inference import plan_lines

    if session.json:
        session.screen.document("plan", {"plan": plan})
        return
    for line in plan_lines(plan):
        session.screen.result(line)


def _start(session: Session, config: RunConfig, plan: Plan, connections: Connections, stages: Stages) -> None:
    """The ledger learns of the run first, as in `train`."""
    from llmctl.controller.collect.locate import record_of
    from llmctl.controller.execute.start import start
    from llmctl.controller.ledger.records import RunRecord

    session.ledger.add(
        RunRecord(
            run_id=plan.run_id,
            name=config.job.name,
            created_at=plan.nodes[0].created_at,
            hosts=tuple(record_of(host) for host in config.hosts),
            inventory_path=session.inventory.path,
            total=None,
            job=plan.nodes[0].job,
        )
    )
    with stages.stage("launch", f"{plan.run_id} on {len(plan.nodes)} hosts") as stage:
        try:
            start(plan, config, connections, session.archive)
        except LlmctlError as error:
            session.ledger.update(
                plan.run_id,
                state=RunState.FAILED,
                reason=f"could not start: {error.line()}",
                exit_code=int(ExitCode.JOB_FAILED),
            )
            raise
        stage.text = f"front on {plan.nodes[0].host} · {plan.master_addr}:{plan.master_port}"
