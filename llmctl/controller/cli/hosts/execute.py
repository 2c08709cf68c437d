"""`llmctl hosts exec`: one command on many hosts at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.options import (
    HostsOption,
    LimitOption,
    OutputOption,
    PoolOption,
    checked_output,
)

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.types import Host
    from llmctl.controller.execute.command import Ran

EPILOG = (
    "Examples:\n\n"
    "    llmctl hosts exec -- nvidia-smi -L\n\n"
    "    llmctl hosts exec --limit 'gpu-*' -- 'df -h / | tail -1'     (one word: a shell's line)\n\n"
    "    llmctl hosts exec --timeout 600 -o json -- sudo -n apt-get -y upgrade"
)


def register(app: typer.Typer) -> None:
    app.command("exec", epilog=EPILOG)(exec_)


def exec_(
    command: Annotated[
        list[str], typer.Argument(metavar="-- CMD...", help="The command; a single word is a shell's line.")
    ],
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, metavar="SECONDS", help="End it on a host after so long.")
    ] = 300.0,
    pool: PoolOption = None,
    limit: LimitOption = None,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Run a command on every host at once; each line of its output comes as `host: line`.

    Exit 0 where it succeeded everywhere, 100 where it failed on a host, 124 where one ran into --timeout.
    What is running when the time is up, or on Ctrl-C, is ended on its host with all its children.
    """
    from llmctl.controller.cli.hosts.choose import chosen_hosts
    from llmctl.controller.cli.session import Session
    from llmctl.wire.exitcodes import ExitCode

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        chosen = chosen_hosts(session, pool, limit)
        results = _run(session, chosen, command, timeout)
    except KeyboardInterrupt:
        session.screen.warn("interrupted; the command is being ended on its hosts")
        raise typer.Exit(ExitCode.DETACHED) from None
    finally:
        session.close()
    raise typer.Exit(_show(session, results))


def _run(session: Session, chosen: tuple[Host, ...], command: list[str], timeout: float) -> dict[str, Ran]:
    from llmctl.controller.execute.command import run_everywhere
    from llmctl.controller.ui.hostexec import Printer

    printer = None if session.json else Printer(session.screen, [host.name for host in chosen])
    return run_everywhere(
        chosen,
        session.connect(chosen),
        command,
        deadline_s=timeout,
        line=printer.line if printer else None,
    )


def _show(session: Session, results: dict[str, Ran]) -> int:
    """The table of exit codes, or the document; then the exit code of all."""
    from llmctl.controller.ui.hostexec import outcome
    from llmctl.errors import HostErrors
    from llmctl.wire import codec
    from llmctl.wire.exitcodes import ExitCode

    errors = [ran.error for ran in results.values() if ran.error is not None]
    if session.json:
        shown = {
            name: {
                "code": ran.code,
                "signal": ran.signal,
                "seconds": round(ran.seconds, 3),
                "output": ran.output,
                "error": ran.error.message if ran.error else None,
            }
            for name, ran in results.items()
        }
        session.screen.document("hosts-exec", codec.encode({"hosts": shown}))
    else:
        session.screen.err.print(outcome(results))
    if errors:
        raise HostErrors(errors)
    return 0 if all(ran.code == 0 for ran in results.values()) else int(ExitCode.JOB_FAILED)
