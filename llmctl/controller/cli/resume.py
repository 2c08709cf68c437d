"""`llmctl resume`: a run that has ended, or that nobody takes care of any more, goes on."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.options import (
    HostsOption,
    OutputOption,
    RunArgument,
    SuperviseOnOption,
    checked_output,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmctl.controller.cli.session import Session
    from llmctl.controller.collect.locate import Located
    from llmctl.controller.collect.view import RunView
    from llmctl.controller.supervise.charge import Charge
    from llmctl.wire.specs import NodeSpec

EPILOG = (
    "Examples:\n\n"
    "    llmctl resume demo-7f3a           (after a failure, a stop, or a reboot of everything)\n\n"
    "    llmctl resume -d demo-7f3a --take-over     (its supervisor's machine is gone)\n\n"
    "    llmctl resume -d demo-7f3a --take-over --supervise-on b     (b watches over it from now on)"
)


def register(app: typer.Typer) -> None:
    app.command("resume", epilog=EPILOG)(resume)


def resume(
    run: RunArgument = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return at once; the run id on stdout.")
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Replace a supervisor that was heard of a moment ago.")
    ] = False,
    supervise_on: SuperviseOnOption = None,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Go on with a run: a new supervisor forms the next attempt, or takes care of the one that runs.

    The recipe continues from the last committed checkpoint; code and settings are the run's own. Secrets and
    `env.pass` are taken from this shell. The old supervisor, wherever it is, can do nothing any more.
    """
    from llmctl.controller.cli.session import Session

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        code = _resume(session, session.locate(run), detach=detach, take_over=take_over, on=supervise_on)
    finally:
        session.close()
    raise typer.Exit(code)


def _resume(session: Session, located: Located, *, detach: bool, take_over: bool, on: str | None) -> int:
    from llmctl.controller.cli.owed import owe
    from llmctl.controller.cli.supervising import leave, post_at
    from llmctl.controller.collect.status import ask, run_view

    connections = session.connect(located.hosts)
    view = run_view(connections, located.hosts, session.archive, located.run_id)
    _refuse(view, take_over=take_over)
    answers = ask(connections, located.hosts, session.archive, located.run_id)
    specs = [answer.status.spec for answer in answers.values() if answer.status]
    spec = max(specs, key=lambda one: one.attempt)
    charge = _charge(session, located, view, spec)
    post = post_at(session, on, charge.config, spec.peers) if on else None
    _claim(session, located, charge, vouched=take_over)
    owe(session, located.run_id, [])  # else the next contact would carry out the old stop
    leave(session, charge, created_at=spec.created_at, tree=spec.tree, allowed=(), post=post)
    session.remember(run_view(connections, located.hosts, session.archive, located.run_id), located.hosts)
    return _show(session, located, spec, detach=detach)


def _refuse(view: RunView, *, take_over: bool) -> None:
    """Raises ConfigError where there is nothing to resume, or somebody takes care of the run already."""
    from llmctl.errors import ConfigError
    from llmctl.wire.states import RunState
    from llmctl.wire.supervision import ENDED, STALE_S

    if view.state is RunState.SUCCEEDED:
        raise ConfigError(f"{view.run_id} has succeeded: nothing is left to do")
    told, age = view.supervision, view.supervisor_age_s
    acts = told is not None and age is not None and told.phase != ENDED and age <= STALE_S
    if told is not None and acts and not take_over:
        raise ConfigError(
            f"{view.run_id} has a supervisor on {told.where or 'some machine'}, heard {age:.0f} s ago",
            hint=f"llmctl attach {view.run_id}; or --take-over, if that one is to be replaced",
        )


def _charge(session: Session, located: Located, view: RunView, spec: NodeSpec) -> Charge:
    from llmctl.controller.config.job import again
    from llmctl.controller.config.models import JobFile
    from llmctl.controller.plan.attempts import policy_of
    from llmctl.controller.supervise.charge import Charge
    from llmctl.controller.supervise.spawn import new_holder

    config = again(JobFile.model_validate(spec.job), located.hosts, environ=os.environ, base=str(Path.cwd()))
    session.screen.hide(config.secrets.to_hide())
    known = view.supervision
    return Charge(
        config=config,
        policy=policy_of(config.job, [host.name for host in config.hosts]),
        run_id=located.run_id,
        attempt=spec.attempt,
        hosts=tuple(peer.host for peer in spec.peers),
        peers=spec.peers,
        epoch=1 + max(spec.epoch, known.epoch if known else 0),
        holder=new_holder(),
        notes=known.attempts if known else (),
        over=_is_over(view),
    )


def _is_over(view: RunView) -> bool:
    """Its last attempt has ended as far as anybody says; where none can, the supervisor will find out."""
    states = [node.state for node in view.nodes if node.state is not None]
    return any(state.ended for state in states)


def _claim(session: Session, located: Located, charge: Charge, *, vouched: bool) -> None:
    """Tell every host of the new supervisor, before it acts: the old one is refused from now on.

    Where a run may go on without some hosts, each must be told: an old supervisor could still act on one that
    was not, and two attempts would live. `vouched`: the user says that there is none.

    Raises:
        HostErrors: no host could be told, or one obeys another supervisor.
    """
    from llmctl.controller.backends.agent import AgentClient
    from llmctl.controller.config.types import Host
    from llmctl.errors import HostErrors, HostUnreachableError, LlmctlError, NotFoundError, ProvisionError
    from llmctl.wire.contact import ContactRequest
    from llmctl.wire.supervision import CLAIMED, PAUSING, WATCHING, Supervision

    told = Supervision(
        epoch=charge.epoch,
        holder=charge.holder,
        where=socket.gethostname(),
        phase=PAUSING if charge.over else WATCHING,
        attempt=charge.attempt,
        detail=CLAIMED,
        attempts=charge.notes,
    )
    connections = session.connect(located.hosts)

    def one(host: Host) -> None:
        client = AgentClient(connections.get(host.name), host, session.archive)
        client.contact(located.run_id, ContactRequest(supervision=told))

    results = connections.each(located.hosts, one)
    errors = [e for e in results.values() if isinstance(e, LlmctlError) and not isinstance(e, NotFoundError)]
    refused: list[LlmctlError] = [error for error in errors if isinstance(error, ProvisionError)]
    if not refused and errors and charge.policy.elastic and not vouched:
        names = ", ".join(error.host or "?" for error in errors)
        raise HostUnreachableError(
            f"{names} can't be told that there is a new supervisor, and an old one may act there",
            hint=f"wait for {names}; or --take-over, if no other supervisor is alive for certain",
            stage="resume",
        )
    if refused or len(errors) == len(located.hosts):
        raise HostErrors(refused or errors)
    _warn(session, errors)


def _warn(session: Session, errors: Sequence[Exception]) -> None:
    for error in errors:
        session.screen.warn(f"{error}; it takes part again once it answers")


def _show(session: Session, located: Located, spec: NodeSpec, *, detach: bool) -> int:
    from llmctl.controller.cli.following import detach_hint, follow_to_end
    from llmctl.controller.cli.verdict import detached, show_verdict
    from llmctl.controller.ui.training import TrainingView
    from llmctl.wire.records import FollowRequest

    if detach:
        if session.json:
            session.screen.document("resume", {"run_id": located.run_id, "state": "restarting"})
        else:
            session.screen.result(located.run_id)
            session.screen.say(f"{located.run_id} goes on.   {detach_hint(located.run_id)}")
        return 0
    logs = spec.recipe is None
    names = [host.name for host in located.hosts]
    display = TrainingView(session.screen, total=spec.total_steps, logs=logs, hosts=names)
    try:
        view = follow_to_end(
            session, session.connect(located.hosts), located, display, FollowRequest(logs=logs, tail=0)
        )
    except KeyboardInterrupt:
        return detached(session, located.run_id)
    return show_verdict(session, view, kind="resume")
