"""Which hosts a verb is about, chosen in the same way by all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.types import Host


def chosen_hosts(session: Session, pool: str | None, limit: Sequence[str] | None) -> tuple[Host, ...]:
    """Every host of the file; with `--pool` or `--limit` those of one pool. Drained hosts too.

    Raises:
        ConfigError: no such pool, or a glob that matches nothing.
    """
    from llmctl.controller.config.inventory import select_hosts

    inventory = session.inventory
    if pool is None and not limit:
        return inventory.all_hosts()
    if pool is None and session.settings.pool is None and len(inventory.pools) > 1:
        return _of_all_pools(session, tuple(limit or ()))
    return select_hosts(inventory, pool=pool or session.settings.pool, limit=tuple(limit or ()))


def _of_all_pools(session: Session, limit: tuple[str, ...]) -> tuple[Host, ...]:
    """`--limit b` needs no `--pool`: names are unique over the whole file."""
    from dataclasses import replace

    from llmctl.controller.config.inventory import select_hosts

    everything = replace(session.inventory, pools={"(all)": session.inventory.all_hosts()})
    return select_hosts(everything, pool="(all)", limit=limit)


def named_host(session: Session, name: str) -> Host:
    """One host by its name. Raises NotFoundError that names those that are there."""
    from llmctl.errors import NotFoundError

    have = {host.name: host for host in session.inventory.all_hosts()}
    if name not in have:
        raise NotFoundError(
            f"no host `{name}` in {session.inventory.path}", hint="there are: " + ", ".join(have)
        )
    return have[name]
