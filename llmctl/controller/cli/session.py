"""What every verb needs, each made only when it is first asked for: start-up must stay cheap."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.controller.config.settings import Settings, load_settings
from llmctl.controller.ui.console import Screen

if TYPE_CHECKING:
    from llmctl.controller.backends.archive import AgentArchive
    from llmctl.controller.collect.locate import Located
    from llmctl.controller.collect.view import RunView
    from llmctl.controller.config.models import JobFile
    from llmctl.controller.config.overrides import JobOverrides
    from llmctl.controller.config.types import Host, Inventory, RunConfig
    from llmctl.controller.ledger.hostbook import HostBook
    from llmctl.controller.ledger.store import Ledger
    from llmctl.controller.transport.pool import Connections


class Session:
    """One invocation of `llmctl`: its settings, its two consoles, and lazily the rest."""

    def __init__(self, **flags: Any) -> None:
        self.settings: Settings = load_settings(flags, environ=os.environ, cwd=Path.cwd())
        self.screen = Screen(color=self.settings.color, json_output=self.settings.output == "json")
        self._connections: dict[tuple[Host, ...], Connections] = {}

    @property
    def json(self) -> bool:
        return self.screen.json_output

    @property
    def interactive(self) -> bool:
        """Whether a question can be asked: a terminal on both sides, and not a CI job."""
        return os.isatty(0) and self.screen.err.is_terminal and not os.environ.get("CI")

    @cached_property
    def inventory(self) -> Inventory:
        from llmctl.controller.config.inventory import find_inventory, load_inventory

        origin = self.settings.origins["hosts"]
        found = load_inventory(find_inventory(self.settings.hosts, os.environ, Path.cwd(), origin=origin))
        drained = {name: mark.reason for name, mark in self.book.drained().items()}
        return replace(found, drained=drained) if drained else found

    def resolve(
        self,
        job: JobFile,
        base: Path,
        overrides: JobOverrides | None = None,
        *,
        inference: bool = False,
        uris: tuple[str, ...] = (),
    ) -> RunConfig:
        """The job on hosts of the inventory, with this command's environment and default pool.

        Args:
            base: what relative paths of the job start from.
            inference, uris: see `config.job.resolve`.
        """
        from llmctl.controller.config.job import resolve
        from llmctl.controller.config.overrides import JobOverrides

        return resolve(
            job,
            self.inventory,
            overrides=overrides or JobOverrides(),
            environ=os.environ,
            base=base,
            default_pool=self.settings.pool,
            inference=inference,
            uris=uris,
        )

    @cached_property
    def ledger(self) -> Ledger:
        from llmctl.controller.ledger.store import Ledger

        return Ledger(self.settings.state_dir, warn=self.screen.warn)

    @cached_property
    def book(self) -> HostBook:
        """What we remember of the hosts of the hosts file; of none where there is no such file."""
        from llmctl.controller.config.inventory import find_inventory
        from llmctl.controller.ledger.hostbook import HostBook
        from llmctl.errors import ConfigError

        try:
            scope = str(find_inventory(self.settings.hosts, os.environ, Path.cwd()).resolve())
        except ConfigError:
            scope = ""
        return HostBook(self.settings.state_dir, scope, warn=self.screen.warn)

    @cached_property
    def archive(self) -> AgentArchive:
        from llmctl.controller.backends.archive import build

        return build()

    @property
    def cache(self) -> Path:
        """Our own folder for stat caches and push memory."""
        return Path(self.settings.state_dir) / "cache"

    def connect(self, hosts: Sequence[Host], pinned: Mapping[str, str] | None = None) -> Connections:
        """Connections to these hosts, the same ones each time; closed with the session.

        Args:
            pinned: keys that these hosts have for certain, beside those that we remember.
        """
        from llmctl.controller.transport.pool import Connections

        key = tuple(hosts)
        if key not in self._connections:
            jumps = self._jump_hosts() if any(host.proxy_jump for host in hosts) else ()
            self._connections[key] = Connections(
                hosts,
                connect_timeout_s=self.settings.connect_timeout_s,
                jump_hosts=jumps,
                pinned={**{name: pin.key for name, pin in self.book.pins().items()}, **(pinned or {})},
            )
        return self._connections[key]

    def _jump_hosts(self) -> Sequence[Host]:
        """Inventory entries that a `proxy_jump` may name; a run of the ledger needs no hosts file."""
        from llmctl.errors import ConfigError

        try:
            return self.inventory.all_hosts()
        except ConfigError:
            return ()

    def locate(self, key: str | None) -> Located:
        """The run that the user means; see `collect.locate`."""
        from llmctl.controller.collect.locate import locate

        def inventory_hosts() -> Sequence[Host]:
            return self.inventory.all_hosts()

        return locate(key, self.ledger, self.archive, inventory_hosts, self.connect)

    def remember(self, view: RunView, hosts: Sequence[Host]) -> None:
        """Write what was just seen of a run to the ledger, also of a run that was started elsewhere."""
        from llmctl.controller.collect.locate import record_of
        from llmctl.controller.ledger.records import RunRecord
        from llmctl.wire import codec

        seen: dict[str, Any] = {
            "state": view.state,
            "attempt": view.attempt,
            "step": view.step,
            "total": view.total,
            "loss": view.loss,
            "tokens_per_s": view.tokens_per_s,
            "reason": view.note,
            "exit_code": int(view.verdict) if view.final else None,
            "view": codec.encode(view),
        }
        known = self.ledger.get(view.run_id)
        if known is not None:
            self.ledger.update(view.run_id, **seen)
            return
        self.ledger.add(
            RunRecord(
                run_id=view.run_id,
                name=view.name,
                created_at=view.created_at,
                hosts=tuple(record_of(host) for host in hosts),
                **seen,
            )
        )

    def close(self) -> None:
        """End all connections; jobs on the hosts have sessions of their own and live on."""
        for connections in self._connections.values():
            connections.close()
        if "ledger" in self.__dict__:
            self.ledger.close()
