"""What the rest of the controller works with: merged, resolved, frozen."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmctl.wire.environment import STORES

if TYPE_CHECKING:  # pydantic is slow to import, and `status` of a finished run needs none of it
    from llmctl.controller.config.models import JobFile

SECRET_KEYS = ("key", "secret", "token", "password")
"""Of an entry of stores.yaml."""

LOCAL = "local"
"""The `addr` of a host that is this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One inventory entry with its file's defaults merged in. `~` in workdir is the host's, not ours."""

    name: str
    addr: str
    user: str | None = None
    port: int | None = None
    identity_file: str | None = None
    workdir: str = "~/.llmctl"
    python: str = "python3"
    slots: int | None = None
    proxy_jump: str | None = None
    internal_addr: str | None = None
    interface: str | None = None
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def is_local(self) -> bool:
        return self.addr == LOCAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """hosts.yaml, resolved. `path` is the file it came from; `drained` why a host gets no new run."""

    path: str
    pools: dict[str, tuple[Host, ...]]
    drained: dict[str, str] = field(default_factory=dict)

    def all_hosts(self) -> tuple[Host, ...]:
        """Every host once, in file order."""
        seen: dict[str, Host] = {}
        for hosts in self.pools.values():
            for host in hosts:
                seen.setdefault(host.name, host)
        return tuple(seen.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything one `train` was asked to do: files, environment and flags merged.

    Attributes:
        hosts: the hosts to use, in rank order.
        job: the job with every override applied.
        base: folder that relative paths of the job are relative to (that of job.yaml).
        env: environment of the ranks, `pass` resolved.
        secrets: names and values; never printed (repr hides them) and never part of a Plan. The job
            itself holds their names only.
        notes: things a person should hear once before the start; none stops it.
    """

    hosts: tuple[Host, ...]
    job: JobFile
    base: str
    env: dict[str, str]
    secrets: Secrets
    notes: tuple[str, ...] = ()


class Secrets(dict[str, str]):
    """Secret environment values; its repr shows names only."""

    def __repr__(self) -> str:
        return "Secrets(" + ", ".join(f"{name}=***" for name in self) + ")"

    def accounts(self) -> dict[str, dict[str, str]]:
        """The entries of stores.yaml that are sent along, by name."""
        found: dict[str, dict[str, str]] = json.loads(self.get(STORES, "{}"))
        return found

    def to_hide(self) -> tuple[str, ...]:
        """Every text that may not be shown: the values, and what is secret inside the accounts of stores."""
        inner = (entry.get(key, "") for entry in self.accounts().values() for key in SECRET_KEYS)
        return (*self.values(), *(value for value in inner if value))
