"""`hosts check --deep` for people: one line per host with what it did, below the table of facts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from rich.text import Text

from llmctl.controller.execute.check import Checked
from llmctl.controller.plan.deep import Deep, PairResult, StoreResult, flops, trial_seconds
from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.format import duration, size
from llmctl.controller.ui.hosts import plain_table
from llmctl.controller.ui.plain import plain
from llmctl.errors import LlmctlError


def show_deep(
    screen: Screen, results: Mapping[str, Checked | LlmctlError], pairs: Sequence[PairResult]
) -> None:
    """Speed of the slowest device, all-reduces with whom, and each place of the job."""
    deep = {name: one.deep for name, one in results.items() if isinstance(one, Checked) and one.deep}
    titles = list(dict.fromkeys(_title(found) for one in deep.values() for found in one.stores))
    table = plain_table("HOST", "COMPUTE", "ALL-REDUCE", *(title.upper() for title in titles))
    for name, one in deep.items():
        stores = {_title(found): _store(found) for found in one.stores}
        cells = [name, _compute(one), _pairs(name, pairs), *(stores.get(title, "-") for title in titles)]
        table.add_row(*(Text(plain(cell)) for cell in cells))
    screen.out.print(table)


def _title(found: StoreResult) -> str:
    """Local places differ from host to host, so the use names them."""
    return {"read": "read", "write": "store up / down", "trial": "checkpoint"}.get(found.use, found.use) + (
        f" {found.uri}" if "://" in found.uri and found.use == "read" else ""
    )


def _compute(deep: Deep) -> str:
    if deep.error:
        return "failed"
    if not deep.devices:
        return "-"
    speeds = [device.flops for device in deep.devices]
    if len(speeds) == 1:
        return flops(speeds[0])
    return f"{len(speeds)} x {flops(statistics.median(speeds))} (least {flops(min(speeds))})"


def _pairs(name: str, pairs: Sequence[PairResult]) -> str:
    """`1.2 GB/s with b`, `failed with c`."""
    told = []
    for pair in pairs:
        if name in (pair.a, pair.b):
            peer = pair.b if pair.a == name else pair.a
            rate = "failed" if pair.rate is None else f"{size(pair.rate)}/s"
            told.append(f"{rate} with {peer}")
    return ", ".join(told) or "-"


def _store(found: StoreResult) -> str:
    reply = found.reply
    if reply.error:
        return "failed"
    if found.use == "trial":
        whole = duration(trial_seconds(found))
        rate = size(reply.bytes / max(1e-6, reply.seconds))
        return f"{size(found.wanted)} in {whole} ({rate}/s)"
    parts = [reply.up, reply.down] if found.use == "write" else [reply.down]
    return " / ".join(f"{size(part)}/s" for part in parts)
