"""`llmctl hosts list`: what the hosts file says."""

from __future__ import annotations

from typing import Any

import typer

from llmctl.controller.cli.options import HostsOption, OutputOption, checked_output


def register(app: typer.Typer) -> None:
    app.command("list", epilog="Example:\n\n    llmctl hosts list -o json")(list_)


def list_(hosts: HostsOption = None, output: OutputOption = None) -> None:
    """Show the hosts file, defaults merged, and which hosts are drained; asks no host."""
    from llmctl.controller.cli.session import Session
    from llmctl.controller.ui.hosts import inventory_table
    from llmctl.wire import codec

    session = Session(hosts=hosts, output=checked_output(output))
    inventory = session.inventory
    if session.json:
        pools: dict[str, Any] = {}
        for name, pool in inventory.pools.items():
            pools[name] = [
                {
                    **codec.encode(host),
                    "labels": dict(host.labels),
                    "drained": inventory.drained.get(host.name),
                }
                for host in pool
            ]
        session.screen.document("hosts", {"path": inventory.path, "pools": pools})
    else:
        session.screen.out.print(inventory_table(inventory))
