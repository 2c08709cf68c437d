"""`llmctl hosts facts`: what is known about each host, for people and for programs."""

from __future__ import annotations

from typing import Any

import typer

from llmctl.controller.cli.options import (
    HostsOption,
    LimitOption,
    OutputOption,
    PoolOption,
    checked_output,
)

EPILOG = (
    "Examples:\n\n"
    "    llmctl hosts facts --limit a\n\n"
    "    llmctl hosts facts -o json | jq '.hosts[].gpus[].model'"
)


def register(app: typer.Typer) -> None:
    app.command("facts", epilog=EPILOG)(facts)


def facts(
    pool: PoolOption = None,
    limit: LimitOption = None,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Show everything that one look at each host finds, without judging it."""
    from llmctl.controller.cli.hosts.choose import chosen_hosts
    from llmctl.controller.cli.session import Session
    from llmctl.controller.execute.facts import facts_of
    from llmctl.controller.probe.facts import HostFacts
    from llmctl.controller.ui.hostfacts import fact_lines
    from llmctl.errors import HostErrors, LlmctlError
    from llmctl.wire import codec

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        chosen = chosen_hosts(session, pool, limit)
        connections = session.connect(chosen)
        found = connections.each(chosen, lambda host: facts_of(host, connections, full=True))
    finally:
        session.close()
    errors = [value for value in found.values() if isinstance(value, LlmctlError)]
    if session.json:
        shown: dict[str, Any] = {
            name: {"error": value.message} if isinstance(value, LlmctlError) else codec.encode(value)
            for name, value in found.items()
        }
        session.screen.document("hosts-facts", {"hosts": shown})
    else:
        for value in found.values():
            if isinstance(value, HostFacts):
                for line in fact_lines(value):
                    session.screen.result(line)
    if errors:
        raise HostErrors(errors)
