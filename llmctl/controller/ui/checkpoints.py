"""Checkpoints for people and machines: the table, what is damaged, what a prune does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llmctl.controller.ui.format import age, names, rate, size
from llmctl.controller.ui.plain import plain
from llmctl.storage.checkpoints import Checkpoint, State
from llmctl.storage.findings import Finding
from llmctl.storage.retention import Pruning

STYLE = {State.COMMITTED: "green", State.UNFINISHED: "yellow", State.DAMAGED: "red"}

Hosts = Mapping[int, Sequence[str]]
"""By step: the hosts that hold it, where checkpoints lie on hosts."""


def checkpoints_table(found: Sequence[Checkpoint], hosts: Hosts | None = None) -> RenderableType:
    """One line per checkpoint, oldest first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("STEP", "STATE", "AGE", "SIZE", "FILES", "RANKS", "MODEL", "RUN"):
        table.add_column(title, no_wrap=True, justify="right" if title in ("STEP", "SIZE") else "left")
    table.add_column("HOSTS" if hosts is not None else "NOTE", overflow="fold")
    for one in found:
        manifest = one.manifest
        note = one.problem if hosts is None else names(list(hosts.get(one.step, ())))
        table.add_row(
            str(one.step),
            Text(one.state.value, style=STYLE[one.state]),
            age(max(0.0, time.time() - one.at)) if one.at else "-",
            size(one.bytes),
            str(one.files),
            str(manifest.world_size) if manifest else "-",
            rate(parameters(one)),
            Text(plain(manifest.run_id) if manifest else "-"),
            Text(plain(note)),
        )
    return table


def parameters(one: Checkpoint) -> int | None:
    """Parameters of the model in it; None: its marker does not say."""
    count = one.manifest.data.get("parameters") if one.manifest else None
    return count if isinstance(count, int) else None


def checkpoint_document(one: Checkpoint, **more: Any) -> dict[str, Any]:
    """One checkpoint for machines; times are POSIX seconds, `age_s` by this machine's clock."""
    manifest = one.manifest
    return {
        "step": one.step,
        "state": one.state.value,
        "folder": one.folder,
        "files": one.files,
        "bytes": one.bytes,
        "at": one.at or None,
        "age_s": max(0.0, time.time() - one.at) if one.at else None,
        "problem": one.problem or None,
        "run_id": manifest.run_id if manifest else None,
        "attempt": manifest.attempt if manifest else None,
        "world_size": manifest.world_size if manifest else None,
        "parameters": parameters(one),
        "model": manifest.model if manifest else None,
        **more,
    }


def findings_document(one: Checkpoint, findings: Sequence[Finding]) -> dict[str, Any]:
    """One verified checkpoint for machines."""
    wrong = [{"path": f.path, "problem": f.problem, "ranges": list(f.ranges)} for f in findings]
    return {**checkpoint_document(one), "findings": wrong}


def pruning_lines(pruning: Pruning) -> list[str]:
    """What a prune does, before it does it."""
    lines = [f"keep    {step_names(pruning.stay)}"]
    lines += [f"remove  {one.step}  {size(one.bytes)}  {_why(one)}" for one in pruning.go]
    lines += [f"damaged {one.step}  {one.problem}" for one in pruning.damaged if one not in pruning.go]
    return lines if pruning.go else [*lines, "remove  nothing"]


def pruning_document(pruning: Pruning, leftovers: Sequence[str], *, dry_run: bool) -> dict[str, Any]:
    """What a prune did, or would do."""
    return {
        "dry_run": dry_run,
        "kept": [one.step for one in pruning.stay],
        "removed": [checkpoint_document(one) for one in pruning.go],
        "damaged": [checkpoint_document(one) for one in pruning.damaged],
        "leftovers": list(leftovers),
    }


def step_names(found: Sequence[Checkpoint]) -> str:
    """Their steps in one line; a long list is cut."""
    return names([str(one.step) for one in found], most=12) or "none"


def _why(one: Checkpoint) -> str:
    return one.state.value if one.state is State.COMMITTED else f"{one.state.value}: {one.problem}"
