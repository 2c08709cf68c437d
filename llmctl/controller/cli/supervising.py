"""Leave a supervisor behind, for the verbs that start a run: `train` and `resume`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.errors import ConfigError, LlmctlError

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.types import Host, RunConfig
    from llmctl.controller.plan.plan import Plan
    from llmctl.controller.supervise.charge import Charge, Mandate
    from llmctl.controller.supervise.posting import Post
    from llmctl.wire.specs import Peer

HEARD_S = 90.0
"""For a supervisor on a host to speak for the first time."""


def supervise_plan(
    session: Session, config: RunConfig, plan: Plan, allowed: tuple[str, ...], post: Post | None = None
) -> None:
    """A process beside this command, or on a host, which outlives it. Without one the run goes on as well.

    Args:
        config: its hosts are all that the run may use, which may be more than the plan's.
        allowed: what may differ between hosts.
        post: the host to supervise; None: this machine.
    """
    from llmctl.controller.plan.attempts import policy_of
    from llmctl.controller.supervise.charge import Charge
    from llmctl.controller.supervise.spawn import new_holder

    node = plan.nodes[0]
    charge = Charge(
        config=config,
        policy=policy_of(config.job, [host.name for host in config.hosts]),
        run_id=plan.run_id,
        attempt=plan.attempt,
        hosts=tuple(one.host for one in plan.nodes),
        peers=node.peers,
        epoch=node.epoch,
        holder=new_holder(),
    )
    leave(session, charge, created_at=node.created_at, tree=node.tree, allowed=allowed, post=post)


def leave(
    session: Session,
    charge: Charge,
    *,
    created_at: float,
    tree: str | None,
    allowed: tuple[str, ...],
    post: Post | None = None,
) -> None:
    """Start the process that takes care of `charge`."""
    from llmctl.controller.config.corpus import corpus_vocabulary
    from llmctl.controller.supervise.charge import Mandate
    from llmctl.controller.supervise.spawn import spawn

    config = charge.config
    mandate = Mandate(
        charge=charge,
        created_at=created_at,
        tree=tree,
        allowed=allowed,
        vocabulary=corpus_vocabulary(config.job, Path(config.base)),
        inventory=_inventory_path(session),
    )
    try:
        if post is None:
            spawn(mandate, session.settings.state_dir)
        else:
            _leave_there(session, mandate, post)
    except LlmctlError as error:
        session.screen.warn(f"{error.line()}; the run goes on, but nothing follows a failed attempt")
        if post is not None:
            session.screen.say(f"  llmctl resume {charge.run_id} --take-over --supervise-on {post.host.name}")


def post_at(session: Session, name: str, config: RunConfig, peers: Sequence[Peer]) -> Post:
    """The host `name` as the run's supervisor, once it is known to be fit for that.

    Args:
        peers: of the attempt that is planned, or that ran last: the addresses that the job itself uses.

    Raises:
        ConfigError: no such host, or this machine. PreflightError, HostErrors: it is not fit, and why.
    """
    from dataclasses import replace

    from llmctl.controller.config.requirements import env_python
    from llmctl.controller.supervise.posting import Post, require_fit, seen_from

    host = _host(session, name, config.hosts)
    addresses = {peer.host: peer.addr for peer in peers}
    hosts = seen_from(name, config.hosts, addresses)
    python = env_python(config.job.env, host) or host.python
    pins, up = _verified(session, config.hosts)
    post = Post(host=replace(host, python=python), hosts=hosts, pins=pins)
    transport = session.connect(config.hosts if host in config.hosts else (host,)).get(name)
    session.screen.say(f"supervisor  asking {name} whether it reaches the other hosts by itself")
    require_fit(transport, post, up, timeout_s=session.settings.connect_timeout_s)
    return post


def _host(session: Session, name: str, ours: Sequence[Host]) -> Host:
    found = next((host for host in ours if host.name == name), None)
    try:
        known = session.inventory.all_hosts() if found is None else ()
    except ConfigError:  # a run of the ledger needs no hosts file
        known = ()
    found = found or next((host for host in known if host.name == name), None)
    if found is None:
        names = ", ".join(dict.fromkeys(host.name for host in (*ours, *known)))
        raise ConfigError(f"--supervise-on {name}: no such host", hint=f"hosts: {names}")
    if found.is_local:
        raise ConfigError(
            f"--supervise-on {name}: that is this machine", hint="leave the option out: it supervises anyway"
        )
    return found


def _verified(session: Session, hosts: Sequence[Host]) -> tuple[dict[str, str], list[str]]:
    """(host keys that we have verified, or had when a host was last seen; hosts that are up)."""
    pins = {name: pin.key for name, pin in session.book.pins().items()}
    connections = session.connect(hosts)
    found = connections.each(hosts, lambda host: connections.identity(host.name))
    up = []
    for name, identity in found.items():
        if isinstance(identity, LlmctlError):
            session.screen.warn(f"{identity.line()}; whether the supervisor will reach it is not known")
        elif identity is not None:
            pins[name] = identity[0]
            up.append(name)
    return {host.name: pins[host.name] for host in hosts if host.name in pins}, up


def _leave_there(session: Session, mandate: Mandate, post: Post) -> None:
    """Raises DeadlineError where it was started, and nothing is heard of it."""
    from llmctl.controller.collect.status import run_view
    from llmctl.controller.supervise.posting import leave_there
    from llmctl.errors import DeadlineError
    from llmctl.wire.supervision import CLAIMED

    charge, ours = mandate.charge, mandate.charge.config.hosts
    connections = session.connect(ours)
    among = any(host.name == post.host.name for host in ours)
    transport = (connections if among else session.connect((post.host,))).get(post.host.name)
    left = leave_there(transport, post, mandate)
    deadline = time.monotonic() + HEARD_S
    while time.monotonic() < deadline:
        told = run_view(connections, ours, session.archive, charge.run_id).supervision
        if told is not None and told.holder == charge.holder and told.detail != CLAIMED:
            session.screen.say(f"supervisor  {post.host.name}, pid {left.pid}; its log: {left.log}")
            return
        time.sleep(0.5)
    raise DeadlineError(f"the supervisor said nothing for {HEARD_S:g} s; see {left.log}", host=post.host.name)


def _inventory_path(session: Session) -> str | None:
    """The hosts file, for jump hosts; a run of the ledger needs none."""
    try:
        return session.inventory.path
    except ConfigError:
        return None
