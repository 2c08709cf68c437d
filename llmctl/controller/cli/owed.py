"""A stop that could not be delivered: the ledger keeps it, and the next contact with the host delivers it,
that of a command or of the run's supervisor on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.collect.view import RunView
    from llmctl.controller.config.types import Host

FIRST_EPOCH = 1
"""Of the supervisor that `train` leaves behind, where the run itself was never seen yet."""


def owe(session: Session, run_id: str, names: Sequence[str]) -> None:
    """Remember which hosts have not heard of the stop; none: it is known everywhere."""
    record = session.ledger.get(run_id)
    epoch = FIRST_EPOCH
    if record and record.view:
        epoch = (record.view.get("supervision") or {}).get("epoch", 0)
    session.ledger.update(run_id, owed_stop=tuple(names), owed_epoch=epoch)


def owing(session: Session, run_id: str) -> tuple[str, ...]:
    """Hosts that have not heard of a stop of this run; none, too, where the ledger can't be read."""
    from llmctl.errors import LlmctlError

    try:
        record = session.ledger.get(run_id)
    except LlmctlError:
        return ()
    return record.owed_stop if record else ()


def deliver(session: Session, view: RunView, hosts: Sequence[Host]) -> None:
    """Stop `view`'s run on hosts that answer again and were owed it. What can't be done now stays owed."""
    record = session.ledger.get(view.run_id)
    if record is None or not record.owed_stop:
        return
    if view.supervision is not None and view.supervision.epoch > record.owed_epoch:
        names = ", ".join(record.owed_stop)
        session.screen.warn(
            f"{view.run_id} was resumed since: the stop that {names} had not heard of is dropped"
        )
        owe(session, view.run_id, [])
        return
    from llmctl.controller.execute.stop import UNHEARD, stop
    from llmctl.controller.ui.stopping import report_line
    from llmctl.errors import LlmctlError

    answering = {node.host for node in view.nodes if node.state is not None or node.missing}
    due = [host for host in hosts if host.name in record.owed_stop and host.name in answering]
    if not due:
        return
    reports = stop(session.connect(hosts), due, session.archive, view.run_id, UNHEARD)
    told = {name: one for name, one in reports.items() if not isinstance(one, LlmctlError)}
    for name, report in told.items():
        session.screen.warn(
            f"{view.run_id}: the stop that {name} had not heard of: {report_line(name, report)}"
        )
    clean = {name for name, report in told.items() if not report.left}
    owe(session, view.run_id, [name for name in record.owed_stop if name not in clean])
