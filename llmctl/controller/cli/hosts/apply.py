"""`llmctl hosts apply`: after an edit of hosts.yaml, look at what it changed, and at nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.controller.cli.options import HostsOption, OutputOption, checked_output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.types import Host
    from llmctl.controller.execute.check import Checked, Results
    from llmctl.controller.plan.inventorydiff import Change

EPILOG = (
    "Examples:\n\n"
    "    llmctl hosts apply --dry-run             (what did the edit change?)\n\n"
    "    llmctl hosts apply"
)


def register(app: typer.Typer) -> None:
    app.command("apply", epilog=EPILOG)(apply)


def apply(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell the differences, ask no host.")] = False,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Check the hosts that an edit of the hosts file added, changed or renamed; forget those it removed.

    Hosts whose entry is as before are not asked. A renamed host keeps what is known of it, its drain too.
    One that is not fit stays new: it is asked again the next time.
    """
    from llmctl.controller.cli.session import Session
    from llmctl.controller.plan.inventorydiff import changes

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        everyone = session.inventory.all_hosts()
        found = changes(session.book.entries(), everyone)
        if not session.json:
            _tell(session, found)
        results: Results = {}
        if not dry_run:
            results = _apply(session, found, everyone)
        _show(session, found, results)
        _raise_errors(results)
    finally:
        session.close()


def _apply(session: Session, found: list[Change], everyone: Sequence[Host]) -> Results:
    """Forget what is gone, then ask what is new; the entries of hosts that are fit are remembered."""
    from llmctl.controller.execute.check import Checked, check_hosts
    from llmctl.controller.execute.identity import Recogniser
    from llmctl.controller.plan.inventorydiff import Edit, entry_of
    from llmctl.controller.ui.hostcheck import Board

    for change in found:
        if change.was is not None:
            session.book.rename(change.was, change.name)
        elif change.edit is Edit.GONE:
            session.book.forget(change.name)
    wanted = {change.name for change in found if change.edit.to_ask}
    chosen = tuple(host for host in everyone if host.name in wanted)
    if not chosen:
        return {}
    connections = session.connect(chosen)
    with Board(session.screen, [host.name for host in chosen]) as board:
        results = check_hosts(chosen, connections, Recogniser(session.book), answered=board.answered)
    for host in chosen:
        result = results[host.name]
        if isinstance(result, Checked) and _is_fit(result):
            session.book.set_entry(host.name, entry_of(host))
    return results


def _is_fit(checked: Checked) -> bool:
    """Drained or not: that is no news about its entry."""
    from llmctl.controller.plan.verdicts import Level

    return all(one.level is not Level.UNFIT or one.about == "drained" for one in checked.verdicts)


def _tell(session: Session, found: list[Change]) -> None:
    from llmctl.controller.ui.hosts import change_lines

    for line in change_lines(found):
        session.screen.result(line)


def _show(session: Session, found: list[Change], results: Results) -> None:
    from llmctl.controller.ui.hostcheck import show_results
    from llmctl.wire import codec

    if session.json:
        from llmctl.controller.cli.hosts.check import document

        told: dict[str, Any] = {"changes": codec.encode(found), "hosts": document(results)}
        session.screen.document("hosts-apply", told)
    elif results:
        show_results(session.screen, results)


def _raise_errors(results: Results) -> None:
    from llmctl.controller.execute.check import Checked
    from llmctl.errors import HostErrors, LlmctlError

    errors = [value for value in results.values() if isinstance(value, LlmctlError)]
    errors += [p for value in results.values() if isinstance(value, Checked) for p in value.problems]
    if errors:
        raise HostErrors(errors)
