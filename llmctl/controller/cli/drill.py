"""`llmctl drill`: break a run on purpose, on the user's own hosts, and prove that it survives."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.options import (
    HostsOption,
    JobOption,
    LimitOption,
    OutputOption,
    PoolOption,
    checked_output,
)

if TYPE_CHECKING:
    from llmctl.controller.cli.launching import Launched
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.overrides import JobOverrides
    from llmctl.controller.config.types import RunConfig
    from llmctl.controller.plan.drill import Assertion, Check, Fault, Ledger, Recovery, Struck, Target
    from llmctl.controller.ui.drilling import DrillPlan
    from llmctl.controller.ui.stages import Stages
    from llmctl.errors import CancelledRunError

EPILOG = (
    "Examples:\n\n"
    "    llmctl drill -f job.yaml --kill host=1 --at-step 50 --assert 'lost-steps<=10,ledger,loss'\n\n"
    "    llmctl drill --kill rank=0 --at-step 25 --assert 'recovery<=60,ledger'\n\n"
    "    llmctl drill --freeze host=b --at-step 25 --set watch.hang=30s\n\n"
    "The drill's run is its own and is stopped at the end, whatever happens, also by Ctrl-C."
)
STOP_GRACE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What was typed, read: `flag` names the option that asks for the fault."""

    freeze: bool
    target: Target
    flag: str
    at_step: int
    asserts: tuple[Assertion, ...]
    timeout_s: float


def register(app: typer.Typer) -> None:
    app.command("drill", epilog=EPILOG)(drill)


def drill(
    file: JobOption = None,
    kill: Annotated[
        str | None,
        typer.Option(
            "--kill", metavar="WHAT", help="host=NAME or NUMBER: its agent and ranks; rank=NUMBER: one rank."
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            "--freeze", metavar="WHAT", help="The same, but its ranks are stopped (SIGSTOP): a hang."
        ),
    ] = None,
    at_step: Annotated[
        int, typer.Option("--at-step", min=1, metavar="STEP", help="Once so many steps are done.")
    ] = 50,
    asserts: Annotated[
        str,
        typer.Option(
            "--assert",
            metavar="WHAT,...",
            help="lost-steps<=N, recovery<=SECONDS, ledger, loss, loss<=DIFFERENCE.",
        ),
    ] = "ledger,loss",
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=1, help="Seconds for the run to come to the step, and to come back."),
    ] = 900.0,
    hosts: HostsOption = None,
    shape: Annotated[
        str | None, typer.Option("-j", metavar="NxM", help="N hosts, M ranks on each: 2x4.")
    ] = None,
    pool: PoolOption = None,
    limit: LimitOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the job: checkpoint.every=10."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; touch no host.")
    ] = False,
    output: OutputOption = None,
) -> None:
    """Break a run of this job on purpose, wait until it is back, and check what was lost.

    The run has its own name, run directory and checkpoints; no other run is touched, and a host that another
    run holds is refused. Exit 0 only where it came back, every assertion holds and nothing is left; else 100.

    loss: steps that were lost and done again must have the same loss. ledger: see `llmctl data audit`.
    """
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.overrides import JobOverrides, parse_shape

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        order = _order(kill, freeze, at_step, asserts, timeout)
        nodes, nproc = parse_shape(shape) if shape else (None, None)
        overrides = JobOverrides(
            nodes=nodes, nproc=nproc, pool=pool, limit=tuple(limit or ()), set=tuple(set_ or ())
        )
        code = _drill(session, _config(session, file, overrides), order, dry_run=dry_run)
    finally:
        session.close()
    raise typer.Exit(code)


def _order(kill: str | None, freeze: str | None, at_step: int, asserts: str, timeout_s: float) -> Order:
    from llmctl.controller.plan.drill import parse_asserts, parse_target
    from llmctl.errors import ConfigError

    if (kill is None) == (freeze is None):
        hint = "--kill host=1 · --kill rank=0 · --freeze host=1"
        raise ConfigError("one of --kill and --freeze says what to break", hint=hint)
    flag = "--freeze" if kill is None else "--kill"
    return Order(
        freeze=kill is None,
        target=parse_target(kill or freeze or "", flag),
        flag=flag,
        at_step=at_step,
        asserts=parse_asserts(asserts),
        timeout_s=timeout_s,
    )


def _config(session: Session, file: str | None, overrides: JobOverrides) -> RunConfig:
    """The job as a run of its own: another name, and checkpoints where no other run keeps any."""
    from llmctl.controller.config.job import load_job
    from llmctl.controller.plan.drill import own_name, own_place

    path = Path(file or "job.yaml")
    config = session.resolve(load_job(path), path.absolute().parent, overrides)
    job = config.job
    changed: dict[str, object] = {"name": own_name(job.name)}
    if job.checkpoint.uri is not None:
        uri = own_place(job.checkpoint.uri, secrets.token_hex(4))
        changed["checkpoint"] = job.checkpoint.model_copy(update={"uri": uri})
    return replace(config, job=job.model_copy(update=changed))


def _drill(session: Session, config: RunConfig, order: Order, *, dry_run: bool) -> int:
    from llmctl.controller.cli.launching import Manner, Outcome, launch
    from llmctl.controller.ui.drilling import plan_lines
    from llmctl.controller.ui.stages import Stages

    plan = _planned(config, order)
    for line in plan_lines(plan):
        (session.screen.result if dry_run and not session.json else session.screen.say)(line)
    if dry_run:
        if session.json:
            session.screen.document("drill-plan", {"plan": plan})
        return 0
    stages = Stages(session.screen)
    launched = launch(session, config, Manner(), stages)
    if isinstance(launched, Outcome):
        if launched.begun is not None:
            raise _interrupted(launched.begun, _stop(session, launched.begun, stages))
        return launched.code
    return _break_and_watch(session, launched, order, plan, stages)


def _planned(config: RunConfig, order: Order) -> DrillPlan:
    """What is to be done, as far as it can be told without a host. Raises ConfigError for what can't work."""
    from llmctl.controller.plan.drill import find_host, refuse_job
    from llmctl.controller.ui.drilling import DrillPlan

    names = [host.name for host in config.hosts]
    refuse_job(config.job, names, order.at_step)
    where = order.target.value
    if order.target.kind == "host":
        where = find_host(order.target, names, order.flag)
    verb = "freeze the ranks" if order.freeze else "kill agent and ranks"
    rank = f"{'freeze' if order.freeze else 'kill'} rank {where}"
    return DrillPlan(
        name=config.job.name,
        hosts=tuple(names),
        fault=f"{verb} on {where}" if order.target.kind == "host" else rank,
        at_step=order.at_step,
        asserts=tuple(one.text for one in order.asserts),
        checkpoints=config.job.checkpoint.uri or "each host's run directory",
        timeout_s=order.timeout_s,
        hang=config.job.watch.hang if order.freeze else None,
    )


def _break_and_watch(
    session: Session, launched: Launched, order: Order, plan: DrillPlan, stages: Stages
) -> int:
    """The run is ours alone, so it never outlives the drill.

    Raises:
        CancelledRunError: Ctrl-C; it says what is left.
    """
    from llmctl.controller.ui.drilling import check_lines, document
    from llmctl.wire.exitcodes import ExitCode

    run_id = launched.plan.run_id
    struck = recovery = None
    try:
        fault, struck = _strike(session, launched, order, stages)
        recovery = _recover(session, launched, struck, order, stages)
    except KeyboardInterrupt:
        session.screen.warn(f"interrupted; {run_id} is being stopped")
    finally:
        clean = _stop(session, launched, stages)
    if struck is None or recovery is None:
        raise _interrupted(launched, clean)
    checks = (*_judged(session, launched, struck, recovery, order, stages), clean)
    passed = all(check.held for check in checks)
    if session.json:
        session.screen.document("drill", document(run_id, plan, fault, struck, recovery, checks))
    else:
        for line in check_lines(run_id, checks):
            session.screen.result(line)
    return 0 if passed else int(ExitCode.JOB_FAILED)


def _interrupted(launched: Launched, clean: Check) -> CancelledRunError:
    from llmctl.errors import CancelledRunError

    run_id = launched.plan.run_id
    hint = f"what it wrote is there: llmctl status {run_id} · llmctl logs {run_id}"
    if not clean.held:
        hint = f"llmctl stop {run_id}"
    return CancelledRunError(f"the drill was interrupted; {clean.text}", stage="drill", hint=hint)


def _strike(session: Session, launched: Launched, order: Order, stages: Stages) -> tuple[Fault, Struck]:
    from llmctl.controller.execute.drill import strike
    from llmctl.controller.plan.drill import fault_of

    peers = [(node.host, node.launch.first_rank, node.launch.nproc) for node in launched.plan.nodes]
    fault = fault_of(freeze=order.freeze, target=order.target, flag=order.flag, peers=peers)
    hosts = launched.config.hosts
    with stages.stage("fault", f"waiting for step {order.at_step}") as stage:
        struck = strike(
            session.connect(hosts),
            next(host for host in hosts if host.name == fault.host),
            session.archive,
            launched.plan.run_id,
            fault,
            attempt=launched.plan.attempt,
            at_step=order.at_step,
            within_s=order.timeout_s,
        )
        plural = "" if len(struck.hit) == 1 else "es"
        stage.text = f"{fault.text} after step {struck.step}: {len(struck.hit)} process{plural}"
    return fault, struck


def _recover(session: Session, launched: Launched, struck: Struck, order: Order, stages: Stages) -> Recovery:
    from llmctl.controller.collect.status import run_view
    from llmctl.controller.execute.drill import await_recovery

    hosts, run_id = launched.config.hosts, launched.plan.run_id
    connections = session.connect(hosts)
    with stages.stage("recovery", f"waiting until it is past step {struck.step} again") as stage:
        return await_recovery(
            lambda: run_view(connections, hosts, session.archive, run_id),
            struck,
            within_s=order.timeout_s,
            tell=stage.doing,
        )


def _stop(session: Session, launched: Launched, stages: Stages) -> Check:
    """End the drill's run on every host, and say what of it is left."""
    from llmctl.controller.collect.status import run_view
    from llmctl.controller.execute.stop import stop
    from llmctl.controller.plan.drill import Check
    from llmctl.errors import LlmctlError
    from llmctl.wire.records import StopReport, StopRequest

    hosts, run_id = launched.config.hosts, launched.plan.run_id
    connections = session.connect(hosts)
    request = StopRequest(grace_s=STOP_GRACE_S, reason="the drill is over")
    try:
        with stages.stage("stop", run_id):
            reports = stop(connections, hosts, session.archive, run_id, request)
    except KeyboardInterrupt:
        session.screen.warn(f"interrupted again; parts of it may run: llmctl stop {run_id}")
        raise
    left = [f"{name}: {one.message}" for name, one in reports.items() if isinstance(one, LlmctlError)]
    for name, report in reports.items():
        left += [f"{name}: {what}" for what in (report.left if isinstance(report, StopReport) else ())]
    try:
        session.remember(run_view(connections, hosts, session.archive, run_id), hosts)
    except LlmctlError as error:
        session.screen.warn(f"{run_id}: {error.line()}")
    names = ", ".join(host.name for host in hosts)
    text = "; ".join(left) if left else f"no process, port or GPU memory left on {names}"
    return Check(name="clean", held=not left, text=text)


def _judged(
    session: Session, launched: Launched, struck: Struck, recovery: Recovery, order: Order, stages: Stages
) -> tuple[Check, ...]:
    """Fetch what the hosts kept of the run, and hold it against the assertions."""
    from llmctl.controller.cli.auditing import JOURNALS
    from llmctl.controller.collect.lineage import WANTED, lineage_of
    from llmctl.controller.collect.pull import pull_run
    from llmctl.controller.plan.drill import judge

    hosts, run_id = launched.config.hosts, launched.plan.run_id
    folder = session.cache / JOURNALS / run_id
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    connections = session.connect(hosts)
    with stages.stage("evidence", "fetching metrics and journals"):
        pull_run(
            connections, hosts, session.archive, run_id, folder, checkpoints="none", only=WANTED.fullmatch
        )
        ledger = _ledger(session, launched, folder)
    recipe = launched.plan.nodes[0].recipe
    fp32 = recipe is not None and recipe.precision == "fp32"
    return judge(order.asserts, struck, recovery, lineage_of(folder), ledger, fp32=fp32)


def _ledger(session: Session, launched: Launched, folder: Path) -> Ledger:
    from llmctl.controller.collect.audit import audit_run
    from llmctl.controller.collect.proof.findings import Verdict
    from llmctl.controller.plan.drill import Ledger
    from llmctl.controller.ui.auditing import summary
    from llmctl.errors import LlmctlError

    hosts, run_id = launched.config.hosts, launched.plan.run_id
    try:
        proof = audit_run(session.connect(hosts), hosts, session.archive, run_id, folder).proof
    except LlmctlError as error:
        return Ledger(proven=False, text=error.line())
    findings = "".join(f"; {finding.text}" for finding in proof.findings[:3])
    proven = proof.verdict is Verdict.OK and bool(proof.stretches)
    return Ledger(proven=proven, text=summary(proof) + findings)
