"""Our end of `--supervise-on`: is a host fit to supervise a run, and the start of the supervisor there.

Everything that would only show after the laptop is closed is asked before anything starts: from that host,
with its own keys, against host keys that we have verified ourselves.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import build_whole
from llmctl.controller.config.types import LOCAL, Host
from llmctl.controller.supervise.charge import Mandate, dump
from llmctl.controller.transport.base import Transport
from llmctl.controller.transport.sshconfig import resolve
from llmctl.errors import ConfigError, HostErrors, LlmctlError, PreflightError, ProvisionError
from llmctl.wire import codec

MODULE = "llmctl.controller.supervise.remote"
STAGE = "supervise"
LOOK_S = 90.0
LEAVE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happened when that host logged in to `host`; `error` is the class of an LlmctlError."""

    host: str
    error: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a host says of itself as a place for a supervisor.

    Attributes:
        python: its interpreter. lacks: requirements that this has not; then nothing more was tried.
    """

    python: str
    lacks: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A supervisor that was started: its pid and its log, on that host."""

    python: str
    lacks: tuple[str, ...] = ()
    pid: int = 0
    log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """A host that supervises a run.

    Attributes:
        host: as we reach it, with the Python that the supervisor runs under.
        hosts: those of the run, as it reaches them. pins: `type base64` of their host keys, verified by us.
    """

    host: Host
    hosts: tuple[Host, ...]
    pins: Mapping[str, str]


def seen_from(post: str, hosts: Sequence[Host], addresses: Mapping[str, str]) -> tuple[Host, ...]:
    """The hosts as `post` reaches them: itself without SSH, the others where the job's ranks do, as the users
    that we are there. Our key files, ssh config and jump hosts mean nothing there.

    Args:
        addresses: by host, the one that the job uses; else hosts.yaml's.

    Raises:
        ConfigError: one of them is this machine, which others can't be told to log in to.
    """
    found = []
    for host in hosts:
        if host.is_local:
            raise ConfigError(
                f"{host.name} is this machine (`addr: local`): {post} has no way to it",
                hint="leave --supervise-on out, or give it an address in hosts.yaml",
            )
        target = resolve(replace(host, proxy_jump="none", identity_file=None))
        used = addresses.get(host.name) or host.internal_addr
        addr = LOCAL if host.name == post else used or target.hostname
        found.append(
            replace(
                host,
                addr=addr,
                user=target.user,
                port=target.port,
                identity_file=None,
                proxy_jump=None,
                internal_addr=used,
            )
        )
    return tuple(found)


def require_fit(transport: Transport, post: Post, among: Sequence[str], *, timeout_s: float) -> None:
    """Raises unless `post` can run a supervisor, and reaches the hosts `among` by itself.

    Args:
        among: hosts that are up, by our own sight.

    Raises:
        PreflightError: its Python lacks something. HostErrors: hosts that it can't log in to, and why.
    """
    hosts = [host for host in post.hosts if host.name in among]
    told = {
        "hosts": [codec.encode(host) for host in hosts],
        "pins": dict(post.pins),
        "timeout_s": timeout_s,
    }
    client = AgentClient(transport, post.host, build_whole())
    outlook = client.ask(MODULE, "look", json.dumps(told), Outlook, stage=STAGE, deadline_s=LOOK_S)
    if outlook.lacks:
        raise lacking(post.host, outlook.python, outlook.lacks)
    by_name = {host.name: host for host in hosts}
    errors: list[LlmctlError] = [_unreached(post, by_name[fault.host], fault) for fault in outlook.faults]
    if errors:
        raise HostErrors(errors)


def leave_there(transport: Transport, post: Post, mandate: Mandate) -> Left:
    """Start the supervisor there. The mandate, with its secrets, travels on the command's stdin.

    Raises:
        HostUnreachableError, DeadlineError: it may have been started all the same.
        PreflightError, ProvisionError: it was not.
    """
    config = replace(mandate.charge.config, hosts=post.hosts)
    charge = replace(mandate.charge, config=config)
    there = replace(mandate, charge=charge, inventory=None, pins=post.pins)
    body = json.dumps({"workdir": post.host.workdir, "mandate": dump(there)})
    client = AgentClient(transport, post.host, build_whole())
    left = client.ask(MODULE, "leave", body, Left, stage=STAGE, deadline_s=LEAVE_S)
    if left.lacks:
        raise lacking(post.host, left.python, left.lacks)
    if not left.pid:
        raise ProvisionError("no supervisor was started", host=post.host.name, stage=STAGE)
    return left


def lacking(host: Host, python: str, lacks: Sequence[str]) -> PreflightError:
    """Its Python can't run llmctl, and what would make it do so."""
    if any(text.startswith("Python ") for text in lacks):
        hint = f"set `python:` for {host.name} in hosts.yaml to a newer one"
    else:
        wanted = " ".join(map(shlex.quote, lacks))
        hint = (
            f"on {host.name}: {python} -m pip install {wanted}; or, in a job with env.requirements, add them"
        )
        hint += f" there and: llmctl hosts bootstrap {host.name}"
    return PreflightError(
        f"no supervisor can run under {python}: it lacks {', '.join(lacks)}",
        host=host.name,
        stage=STAGE,
        hint=hint,
    )


def _unreached(post: Post, peer: Host, fault: Fault) -> PreflightError:
    return PreflightError(
        f"{post.host.name} can't log in there by itself: {fault.message}",
        host=peer.name,
        stage=STAGE,
        hint=" ".join(_remedy(post.host.name, peer, fault)),
    )


def _remedy(post: str, peer: Host, fault: Fault) -> Iterator[str]:
    """Agents and forwarded keys are gone once the laptop is, so the host needs a key of its own."""
    at = f"-p {peer.port} {peer.user}@{peer.addr}" if peer.port != 22 else f"{peer.user}@{peer.addr}"
    if fault.error == "HostIdentityError":
        yield f"compare the keys; if {peer.name} was reinstalled, on {post}: ssh-keygen -R {peer.addr}"
    elif "accepted no key" in fault.message:
        yield f"give {post} a key of its own that {peer.name} accepts:"
        yield f"on {post}: ssh-keygen -t ed25519 (if it has none), then ssh-copy-id {at}"
    else:
        yield f"on {post}, `ssh {at} true` must work;"
        yield f"set `internal_addr` of {peer.name} in hosts.yaml to an address that {post} reaches"
