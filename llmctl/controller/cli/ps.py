"""`llmctl ps`: what runs on the hosts of a pool right now, and what nobody looks after any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.controller.cli.options import HostsOption, LimitOption, OutputOption, PoolOption, checked_output

if TYPE_CHECKING:
    from llmctl.errors import LlmctlError
    from llmctl.wire.agents import PsReply

EPILOG = "Examples:\n\n    llmctl ps\n\n    llmctl ps --reap          (end orphans)\n\n    llmctl ps -o json"


def register(app: typer.Typer) -> None:
    app.command("ps", epilog=EPILOG)(ps)


def ps(
    pool: PoolOption = None,
    limit: LimitOption = None,
    reap: Annotated[bool, typer.Option("--reap", help="End orphans, and check that they are gone.")] = False,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Show the agents and processes of runs on every host, also of runs that others started.

    An orphan is a process of a run whose agent and guard are both dead. With --reap it is ended; without, its
    presence makes the exit code 100. A host that can't be asked is named, and makes it 11.
    """
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.inventory import select_hosts
    from llmctl.controller.execute.agents import ask_ps
    from llmctl.controller.ui.agents import agents_table
    from llmctl.errors import HostErrors, LlmctlError

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        chosen = (
            select_hosts(session.inventory, pool=pool, nodes=None, limit=tuple(limit or ()))
            if pool or limit
            else session.inventory.all_hosts()
        )
        replies = ask_ps(session.connect(chosen), chosen, session.archive, reap=reap)
        if session.json:
            session.screen.document("ps", {"hosts": _document(replies)})
        else:
            session.screen.out.print(agents_table(replies))
    finally:
        session.close()
    errors = [reply for reply in replies.values() if isinstance(reply, LlmctlError)]
    if errors:
        raise HostErrors(errors)
    raise typer.Exit(_code(replies))


def _code(replies: dict[str, PsReply | LlmctlError]) -> int:
    from llmctl.errors import LlmctlError
    from llmctl.wire.exitcodes import ExitCode

    told = [reply for reply in replies.values() if not isinstance(reply, LlmctlError)]
    orphans = any(one.orphans for reply in told for one in reply.runs)
    return int(ExitCode.JOB_FAILED) if orphans else 0


def _document(replies: dict[str, PsReply | LlmctlError]) -> dict[str, Any]:
    from llmctl.errors import LlmctlError
    from llmctl.wire import codec

    return {
        name: {"error": reply.message} if isinstance(reply, LlmctlError) else codec.encode(reply)
        for name, reply in replies.items()
    }
