"""The hosts file for people: one line per host."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from llmctl.controller.config.types import Host, Inventory


def inventory_table(inventory: Inventory) -> Table:
    """One line per host, pool by pool; labels and drained only where there are any."""
    hosts = inventory.all_hosts()
    labelled, drained = any(host.labels for host in hosts), bool(inventory.drained)
    more = (*(("LABELS",) if labelled else ()), *(("DRAINED",) if drained else ()))
    table = plain_table("POOL", "HOST", "ADDR", "SLOTS", "PYTHON", "WORKDIR", *more)
    for pool, members in inventory.pools.items():
        for host in members:
            cells = [pool, host.name, _address(host), str(host.slots or "auto"), host.python, host.workdir]
            if labelled:
                cells.append(" ".join(f"{name}={value}" for name, value in host.labels))
            if drained:
                cells.append(_drained(inventory, host))
            table.add_row(*(Text(cell) for cell in cells))
    return table


def plain_table(*titles: str) -> Table:
    """A table without lines, as all of ours."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _drained(inventory: Inventory, host: Host) -> str:
    return inventory.drained[host.name] or "yes" if host.name in inventory.drained else ""


def _address(host: Host) -> str:
    user = f"{host.user}@" if host.user else ""
    port = f":{host.port}" if host.port else ""
    jump = f" via {host.proxy_jump}" if host.proxy_jump else ""
    return f"{user}{host.addr}{port}{jump}"
