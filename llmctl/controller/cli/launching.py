"""From a job that is known to a run that is started, followed and brought home; `train` and `demo` do it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.controller.cli.mapped import ByMap, by_map, with_links
from llmctl.errors import BusyError, ConfigError, HostErrors, LlmctlError
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.states import RunState

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.collect.locate import Located
    from llmctl.controller.config.types import RunConfig
    from llmctl.controller.execute.data import Seen
    from llmctl.controller.execute.prepare import Prepared
    from llmctl.controller.plan.attempts import Policy
    from llmctl.controller.plan.plan import Plan
    from llmctl.controller.supervise.posting import Post
    from llmctl.controller.transport.pool import Connections
    from llmctl.controller.ui.stages import Stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a run is to be started and followed, beside what the job says.

    Attributes:
        detach: return once it runs.
        dry_run: check and plan only.
        pull: folder below which the run is pulled at its end; None: it is not.
        allowed: what may differ between hosts (`plan.parity.FIELDS`).
        map_age_s: how old a network map may be to go by it, in seconds; 0: by none.
        wait, share: where another run holds a host: wait for its end, or share the host; else: refused.
        supervise_on: the host that is to supervise the run; None: this machine.
    """

    detach: bool = False
    dry_run: bool = False
    pull: Path | None = None
    allowed: tuple[str, ...] = ()
    map_age_s: float = 0.0
    wait: bool = False
    share: bool = False
    supervise_on: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one `train` ended: its exit code, and the folder that the run was pulled to.

    Attributes:
        begun: what Ctrl-C has met while it was starting; parts of it may run.
    """

    code: int
    pulled: Path | None = None
    begun: Launched | None = None


def run(session: Session, config: RunConfig, manner: Manner) -> Outcome:
    """Everything after the job is known. `demo` calls it too."""
    while True:
        try:
            return _run(session, config, manner)
        except HostErrors as error:  # somebody else was faster: this one waits again
            if not manner.wait or not any(isinstance(one, BusyError) for one in error.errors):
                raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A run that goes on now; `config` has its hosts in the order of a network map."""

    config: RunConfig
    plan: Plan


def _run(session: Session, config: RunConfig, manner: Manner) -> Outcome:
    from llmctl.controller.ui.stages import Stages

    stages = Stages(session.screen)
    launched = launch(session, config, manner, stages)
    if isinstance(launched, Outcome):
        return launched
    if manner.detach:
        return Outcome(code=_detached(session, launched.plan))
    connections = session.connect(config.hosts)
    return _follow(session, launched.config, launched.plan, connections, stages, pull=manner.pull)


def launch(session: Session, config: RunConfig, manner: Manner, stages: Stages) -> Launched | Outcome:
    """Check, push, plan and start, and leave a supervisor behind where the job wants one.

    An Outcome: nothing more is to be done, as after a dry run or Ctrl-C.
    """
    from llmctl.controller.cli.supervising import supervise_plan
    from llmctl.controller.execute.agents import await_free
    from llmctl.controller.execute.data import look_beside
    from llmctl.controller.plan.attempts import policy_of
    from llmctl.controller.plan.slow import require_possible

    session.screen.hide(config.secrets.to_hide())
    for note in config.notes:
        session.screen.warn(note)
    connections = session.connect(config.hosts)
    run_id = f"{config.job.name}-{secrets.token_hex(3)}"
    data = look_beside(config)
    try:
        if manner.wait and not manner.share and not manner.dry_run:
            await_free(connections, config.hosts, session.archive, session.screen.say)
        prepared = _prepare(
            session, config, connections, stages, push=not manner.dry_run, allowed=manner.allowed
        )
        _show_data(session, data.result(), stages)
    except KeyboardInterrupt:
        session.screen.warn("interrupted; nothing was started")
        return Outcome(code=int(ExitCode.CANCELLED))
    found = by_map(session, config.hosts, prepared.facts, manner.map_age_s)
    config = replace(config, hosts=found.hosts)
    policy = policy_of(config.job, [host.name for host in config.hosts])
    plan = _plan(session, config, prepared, run_id, policy, found)
    require_possible(config.job, policy, plan.nodes[0].recipe)
    post = _post(session, config, plan, policy, manner.supervise_on)
    if manner.dry_run:
        _show_plan(session, plan)
        return Outcome(code=0)
    session.screen.headline(plan.run_id, plan.summary)
    try:
        _start(session, config, plan, connections, stages, share=manner.share)
        if policy.supervised:
            supervise_plan(session, config, plan, manner.allowed, post)
    except KeyboardInterrupt:
        return Outcome(code=_interrupted(session, plan), begun=Launched(config=config, plan=plan))
    return Launched(config=config, plan=plan)


def _post(session: Session, config: RunConfig, plan: Plan, policy: Policy, name: str | None) -> Post | None:
    """The host that is to supervise, found fit. Raises ConfigError where nothing is to be decided at all."""
    from llmctl.controller.cli.supervising import post_at

    if name is None:
        return None
    if not policy.supervised:
        raise ConfigError(
            f"--supervise-on {name}: the job asks for no restarts, so there is nothing to supervise",
            hint="set `restarts.max` or `restarts.min_nodes` in the job, or leave the option out",
        )
    return post_at(session, name, config, plan.nodes[0].peers)


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


def _plan(
    session: Session, config: RunConfig, prepared: Prepared, run_id: str, policy: Policy, found: ByMap
) -> Plan:
    from llmctl.controller.config.corpus import corpus_vocabulary
    from llmctl.controller.plan.machines import Given
    from llmctl.controller.plan.plan import Identity, plan_run

    identity = Identity(
        run_id=run_id,
        attempt=1,
        created_at=time.time(),
        agent=session.archive.hash,
        tree=prepared.tree.hash if prepared.tree else None,
        epoch=1 if policy.supervised else 0,
        contact_s=policy.lease_s if policy.elastic else None,
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


def _start(
    session: Session,
    config: RunConfig,
    plan: Plan,
    connections: Connections,
    stages: Stages,
    *,
    share: bool,
) -> None:
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
            start(plan, config, connections, session.archive, share=share)
        except LlmctlError as error:
            if isinstance(error, HostErrors) and any(isinstance(one, BusyError) for one in error.errors):
                session.ledger.forget(plan.run_id)  # refused at the door: there never was such a run
                raise
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
