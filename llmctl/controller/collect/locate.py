"""Find a run by what the user typed: in the ledger, else on the hosts of the inventory.

Another laptop, or CI with an empty home, has no ledger; the hosts know their runs all the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.collect.status import all_runs
from llmctl.controller.collect.view import RunView
from llmctl.controller.config.types import Host
from llmctl.controller.ledger.records import HostRecord, RunRecord
from llmctl.controller.ledger.store import Ledger
from llmctl.controller.transport.pool import Connections
from llmctl.errors import ConfigError, HostErrors, NotFoundError

LIST_HINT = "llmctl status lists the runs that this machine knows; llmctl status --all asks the hosts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A run and how to reach its hosts; `record` is None where only the hosts know it."""

    run_id: str
    hosts: tuple[Host, ...]
    record: RunRecord | None = None


def locate(
    key: str | None,
    ledger: Ledger,
    archive: AgentArchive,
    inventory_hosts: Callable[[], Sequence[Host]],
    connect: Callable[[Sequence[Host]], Connections],
) -> Located:
    """The run whose id, unique prefix or name is `key`; None: the newest.

    Raises:
        NotFoundError: nobody knows it, or several runs fit.
        HostErrors: it is in no ledger and not every host could be asked.
    """
    record = _newest(ledger) if key is None else ledger.get(key)
    if record is not None:
        hosts = tuple(host_of(host) for host in record.hosts)
        return Located(run_id=record.run_id, hosts=hosts, record=record)
    try:
        hosts = tuple(inventory_hosts())
    except ConfigError as error:
        what = "no run yet" if key is None else f"no run `{key}` in the ledger"
        raise NotFoundError(f"{what}, and no hosts to ask ({error.message})", hint=error.hint) from error
    views, errors = all_runs(connect(hosts), hosts, archive)
    fitting = [view for view in views if key is None or _fits(view, key)]
    if not fitting and errors:
        raise HostErrors(errors)
    if not fitting:
        raise NotFoundError(
            "no run yet" if key is None else f"no run `{key}`, neither in the ledger nor on the hosts",
            hint=LIST_HINT,
        )
    view = _only(fitting, key)
    wanted = {node.host for node in view.nodes}
    return Located(run_id=view.run_id, hosts=tuple(host for host in hosts if host.name in wanted))


def host_of(record: HostRecord) -> Host:
    """The inventory entry that a ledger row remembers."""
    return Host(**dataclasses.asdict(record))


def record_of(host: Host) -> HostRecord:
    """What the ledger keeps of an inventory entry."""
    return HostRecord(**{f.name: getattr(host, f.name) for f in dataclasses.fields(HostRecord)})


def _newest(ledger: Ledger) -> RunRecord | None:
    return next(iter(ledger.list(1)), None)


def _fits(view: RunView, key: str) -> bool:
    return view.run_id == key or view.run_id.startswith(key) or view.name == key


def _only(fitting: list[RunView], key: str | None) -> RunView:
    if key is None or len(fitting) == 1:
        return fitting[0]
    exact = [view for view in fitting if view.run_id == key]
    going_on = exact or [view for view in fitting if not view.state.ended]
    if len(going_on) == 1:
        return going_on[0]
    ids = ", ".join(view.run_id for view in fitting[:5])
    raise NotFoundError(f"`{key}` fits {len(fitting)} runs: {ids}", hint="give more of the run's id")
