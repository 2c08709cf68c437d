"""Which rank holds the others up, and which host is slow: what only a look at all hosts can tell. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from llmctl.wire.parallel import share
from llmctl.wire.progress import Hang, Progress, RankStack
from llmctl.wire.records import NodeStatus

PERSISTENT_STEPS = 20
"""Steps behind a rank's means before anything is said of its host."""

SMALLEST_S = 0.02
"""Per step: below it a difference is the noise of a busy machine."""

SMALLEST_SHARE = 0.1
"""Of a step: below it the host is slower, and nobody waits much for it."""

_MOST_NAMED = 3


def hang_verdict(statuses: Mapping[str, NodeStatus]) -> str:
    """One line that names who holds the others up; empty where no host reports a hang.

    Args:
        statuses: by host name, of one attempt.
    """
    hangs = {host: status.hang for host, status in statuses.items() if status.hang}
    if not hangs:
        return ""
    idle = max(hang.idle_s for hang in hangs.values())
    silent = sorted(set(statuses) - set(hangs))
    unseen = f" ({', '.join(silent)} took no stacks)" if silent else ""
    return f"hang: no step for {idle:.0f} s; {_who(hangs)}{unseen}"


def _who(hangs: Mapping[str, Hang]) -> str:
    ranks = [(host, rank) for host, hang in sorted(hangs.items()) for rank in hang.ranks]
    busy = [entry for entry in ranks if not entry[1].waits]
    if busy and len(busy) < len(ranks):
        holds = "holds" if len(busy) == 1 else "hold"
        return f"{_named(busy)} {holds} the others up"
    if busy:
        return f"no rank waits for another: {_named(busy)}"
    places = {rank.where for _, rank in ranks}
    if len(places) > 1:
        return f"ranks wait in different collectives: {_named(_one_of_each_place(ranks))}"
    return f"every rank waits in a collective at {next(iter(places), '?')}: is the network between them up?"


def _named(ranks: list[tuple[str, RankStack]]) -> str:
    told = [f"rank {rank.rank} ({host}) at {rank.where}" for host, rank in ranks[:_MOST_NAMED]]
    more = len(ranks) - _MOST_NAMED
    return ", ".join(told) + (f" and {more} more" if more > 0 else "")


def _one_of_each_place(ranks: list[tuple[str, RankStack]]) -> list[tuple[str, RankStack]]:
    found: dict[str, tuple[str, RankStack]] = {}
    for host, rank in ranks:
        found.setdefault(rank.where, (host, rank))
    return list(found.values())


def stragglers(statuses: Mapping[str, NodeStatus]) -> tuple[str, ...]:
    """The evidence of `slow_hosts`."""
    return tuple(slow_hosts(statuses).values())


def slow_hosts(statuses: Mapping[str, NodeStatus]) -> dict[str, str]:
    """By host, one line of evidence for each that is slower by its own work than the median of the others.

    Time in which a rank waits for sums with others counts for nobody, so that the slow host stands out and
    not those that wait for it. Where every layer of a step needs other hosts (FSDP, tp or pp between them),
    their own times are alike and none is named.
    """
    slowest = {host: rank for host, status in statuses.items() if (rank := _slowest(status.progress))}
    lines = {}
    for host, rank in sorted(slowest.items()):
        others = [_own(other) for name, other in slowest.items() if name != host]
        if not others:
            continue
        usual = statistics.median(others)
        factor = statuses[host].spec.watch.straggler
        if _own(rank) > factor * usual and _own(rank) - usual > _noticed(rank):
            lines[host] = _evidence(host, rank, usual)
    return lines


def speeds(statuses: Mapping[str, NodeStatus]) -> dict[str, float]:
    """Samples per second of each host's slowest rank, by its own work.

    Hosts of which too little is known yet, or whose ranks train on no shares of a batch, are left out.
    """
    found = {}
    for host, status in statuses.items():
        rank, recipe = _slowest(status.progress), status.spec.recipe
        if rank is None or recipe is None or not _own(rank):
            continue
        world = sum(peer.nproc for peer in status.spec.peers)
        found[host] = share(recipe.global_batch, rank.rank, world, recipe.shares)[1] / _own(rank)
    return found


def _slowest(ranks: tuple[Progress, ...]) -> Progress | None:
    known = [rank for rank in ranks if rank.own_s is not None and rank.steps > PERSISTENT_STEPS]
    return max(known, key=_own, default=None)


def _own(rank: Progress) -> float:
    return rank.own_s or 0.0


def _noticed(rank: Progress) -> float:
    return max(SMALLEST_S, SMALLEST_SHARE * (rank.step_s or 0.0))


def _evidence(host: str, rank: Progress, usual: float) -> str:
    data = f", {rank.data_s:.2f} s of them for data" if rank.data_s and rank.data_s > SMALLEST_S else ""
    return (
        f"{host} is slow: {_own(rank):.2f} s of its own per step (rank {rank.rank}){data}; "
        f"the other hosts' median is {usual:.2f} s, over the last {PERSISTENT_STEPS} steps"
    )
