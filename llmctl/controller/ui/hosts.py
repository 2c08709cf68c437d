"""The hosts file for people: one line per host."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from llmctl.controller.config.types import Host, Inventory
from llmctl.controller.plan.inventorydiff import Change, Edit


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


MARK = {Edit.NEW: "+", Edit.CHANGED: "~", Edit.RENAMED: "~", Edit.GONE: "-"}


def change_lines(changes: Sequence[Change]) -> list[str]:
    """`~ b  addr 10.0.0.2 -> 10.0.0.9`, one per change, then how many are as before."""
    lines = [f"{MARK[one.edit]} {one.name}  {_edit(one)}" for one in changes if one.edit in MARK]
    same = sum(one.edit is Edit.SAME for one in changes)
    if same:
        lines.append(f"  {same} host{'s' * (same != 1)} as before, not asked")
    return lines


def _edit(change: Change) -> str:
    words = {Edit.NEW: "new", Edit.RENAMED: f"was {change.was}", Edit.GONE: "not in the file: forgotten"}
    return " · ".join(part for part in (words.get(change.edit, ""), *change.what) if part)


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
