"""What a supervisor process is given on its stdin: the only way that secrets travel to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmctl.controller.config.models import JobFile
from llmctl.controller.config.types import Host, RunConfig, Secrets
from llmctl.controller.plan.attempts import Policy, policy_of
from llmctl.wire import codec
from llmctl.wire.specs import Peer
from llmctl.wire.supervision import AttemptNote


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a supervisor is told to take care of.

    Attributes:
        config: its `hosts` are all those that the run may use, in rank order.
        attempt, hosts, peers: the attempt that runs, or ran last.
        notes: every attempt so far, as far as they are known.
        epoch, holder: of this supervisor.
        over: that attempt has ended, and another one is wanted whatever it ended by.
    """

    config: RunConfig
    policy: Policy
    run_id: str
    attempt: int
    hosts: tuple[str, ...]
    peers: tuple[Peer, ...]
    epoch: int
    holder: str
    notes: tuple[AttemptNote, ...] = ()
    over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mandate:
    """A Charge, and what starting further attempts takes.

    Attributes:
        tree: hash of the run's code; None: it has none.
        allowed: what may differ between hosts. vocabulary: of the corpus, as `plan_run` takes it.
        inventory: the hosts file, for jump hosts and what is known of the hosts.
        pins: host name -> the key that it has for certain, where there is no such file.
    """

    charge: Charge
    created_at: float
    tree: str | None
    allowed: tuple[str, ...] = ()
    vocabulary: int | None = None
    inventory: str | None = None
    pins: Mapping[str, str] = field(default_factory=dict)


def dump(mandate: Mandate) -> str:
    """As one JSON document. It holds secrets: for a pipe, never for a file or a log."""
    charge, config = mandate.charge, mandate.charge.config
    return json.dumps(
        {
            "job": config.job.model_dump(mode="json", by_alias=True, exclude_unset=True),
            "hosts": [codec.encode(host) for host in config.hosts],
            "base": config.base,
            "env": config.env,
            "secrets": dict(config.secrets),
            "run_id": charge.run_id,
            "attempt": charge.attempt,
            "on": list(charge.hosts),
            "peers": [codec.encode(peer) for peer in charge.peers],
            "epoch": charge.epoch,
            "holder": charge.holder,
            "over": charge.over,
            "notes": [codec.encode(note) for note in charge.notes],
            "created_at": mandate.created_at,
            "tree": mandate.tree,
            "allowed": list(mandate.allowed),
            "vocabulary": mandate.vocabulary,
            "inventory": mandate.inventory,
            "pins": dict(mandate.pins),
        }
    )


def load(text: str) -> Mandate:
    """What `dump` wrote. Raises ValueError, KeyError, IntegrityError for anything else."""
    told: dict[str, Any] = json.loads(text)
    config = RunConfig(
        hosts=tuple(codec.decode(Host, host) for host in told["hosts"]),
        job=JobFile.model_validate(told["job"]),
        base=told["base"],
        env=told["env"],
        secrets=Secrets(told["secrets"]),
    )
    charge = Charge(
        config=config,
        policy=policy_of(config.job, [host.name for host in config.hosts]),
        run_id=told["run_id"],
        attempt=told["attempt"],
        hosts=tuple(told["on"]),
        peers=tuple(codec.decode(Peer, peer) for peer in told["peers"]),
        epoch=told["epoch"],
        holder=told["holder"],
        over=told["over"],
        notes=tuple(codec.decode(AttemptNote, note) for note in told["notes"]),
    )
    return Mandate(
        charge=charge,
        created_at=told["created_at"],
        tree=told["tree"],
        allowed=tuple(told["allowed"]),
        vocabulary=told["vocabulary"],
        inventory=told["inventory"],
        pins=told["pins"],
    )
