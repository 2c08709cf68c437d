"""Hosts for people: the inventory, and what a check found."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from llmctl.controller.config.types import Host, Inventory
from llmctl.controller.execute.check import Checked
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.ui.format import duration, size
from llmctl.errors import LlmctlError

SKEW_WORTH_TELLING_S = 3.0


def inventory_table(inventory: Inventory) -> Table:
    """One line per host, pool by pool."""
    table = _table("POOL", "HOST", "ADDR", "SLOTS", "PYTHON", "WORKDIR")
    for pool, hosts in inventory.pools.items():
        for host in hosts:
            slots = str(host.slots) if host.slots else "auto"
            table.add_row(
                pool, host.name, escape(_address(host)), slots, escape(host.python), escape(host.workdir)
            )
    return table


def check_table(results: Mapping[str, Checked | LlmctlError]) -> Table:
    """One line per host: its facts and the verdict. Why one can't be asked is the caller's to print below."""
    table = _table("HOST", "VERDICT", "SYSTEM", "CPU", "MEMORY", "DISK FREE", "PYTHON", "TORCH", "GPUS")
    for name, result in results.items():
        if isinstance(result, LlmctlError):
            table.add_row(escape(name), "[red]no contact[/]", "see below")
            continue
        table.add_row(escape(name), _verdict(result), *_facts(result.facts))
    return table


def _facts(facts: HostFacts) -> list[str]:
    python = facts.python
    models = sorted({gpu.model for gpu in facts.gpus})
    gpus = f"{len(facts.gpus)} x {', '.join(models)}" if facts.gpus else "-"
    return [
        escape(facts.system),
        str(facts.cores),
        size(facts.memory),
        size(facts.disk_free),
        python.version if python else "-",
        (python.torch or "none") if python else "-",
        escape(gpus),
    ]


def _verdict(result: Checked) -> str:
    if result.problems:
        return "[red]unfit[/]"
    skew = abs(result.facts.clock - time.time())
    if skew > SKEW_WORTH_TELLING_S:
        return f"[yellow]clock off {duration(skew)}[/]"
    return "[green]fit[/]"


def _address(host: Host) -> str:
    user = f"{host.user}@" if host.user else ""
    port = f":{host.port}" if host.port else ""
    jump = f" via {host.proxy_jump}" if host.proxy_jump else ""
    return f"{user}{host.addr}{port}{jump}"


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table
