"""`llmctl hosts drain | undrain`: keep new runs off a host, and let them come again."""

from __future__ import annotations

import getpass
import socket
import time
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.options import HostsOption

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.wire.records import Drained

NAMES = typer.Argument(metavar="HOST...", help="Hosts of the hosts file.")


def register(app: typer.Typer) -> None:
    app.command("drain", epilog="Example:\n\n    llmctl hosts drain b --reason 'GPU 3 is to be replaced'")(
        drain
    )
    app.command("undrain", epilog="Example:\n\n    llmctl hosts undrain b")(undrain)


def drain(
    names: Annotated[list[str], NAMES],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; everybody is told.")] = "",
    hosts: HostsOption = None,
) -> None:
    """Keep new runs off hosts; what runs there goes on. `train` leaves them out and says so.

    It is remembered here, and marked in each host's workdir, so that other operators see it too.
    """
    from llmctl.wire.records import Drained

    by = f"{getpass.getuser()}@{socket.gethostname()}"
    _apply(names, hosts, Drained(by=by, at=time.time(), reason=reason))


def undrain(names: Annotated[list[str], NAMES], hosts: HostsOption = None) -> None:
    """Let new runs come to hosts again, whoever drained them."""
    _apply(names, hosts, None)


def _apply(names: list[str], hosts: str | None, mark: Drained | None) -> None:
    from llmctl.controller.cli.session import Session

    session = Session(hosts=hosts)
    try:
        _mark_all(session, names, mark)
    finally:
        session.close()


def _mark_all(session: Session, names: list[str], mark: Drained | None) -> None:
    """A host that can't be reached is drained here all the same: that may be why it is drained.

    Raises:
        HostErrors: a marker could not be removed: others, and this machine's next probe, still see it.
    """
    from llmctl.controller.cli.hosts.choose import named_host
    from llmctl.controller.execute.drain import write_marker
    from llmctl.errors import HostErrors, LlmctlError

    chosen = tuple(named_host(session, name) for name in dict.fromkeys(names))
    for host in chosen:
        session.book.set_drained(host.name, mark)
    connections = session.connect(chosen)
    results = connections.each(chosen, lambda host: write_marker(connections.get(host.name), host, mark))
    verb = "drained" if mark else "takes runs again"
    for name, result in results.items():
        if not isinstance(result, LlmctlError):
            session.screen.say(f"✓ {name} {'is ' if mark else ''}{verb}")
        elif mark:
            session.screen.say(f"✓ {name} is drained here")
            session.screen.warn(f"others don't see it: {result.line()}")
    errors = [value for value in results.values() if isinstance(value, LlmctlError)]
    if errors and mark is None:
        raise HostErrors(errors)
