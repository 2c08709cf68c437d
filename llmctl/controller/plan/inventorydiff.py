"""What an edit of hosts.yaml changed, host by host. Pure.

What is compared is the entry with the file's defaults merged in, as it was when `hosts apply` last found the
host fit: a host that was not fit then, or that nobody asked since, counts as new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from llmctl.controller.config.types import Host
from llmctl.wire import codec

PLACE = ("addr", "port", "proxy_jump", "workdir")
"""Where these are the same, another name means the same host."""


class Edit(Enum):
    """What became of a host's entry."""

    NEW = "new"
    CHANGED = "changed"
    RENAMED = "renamed"
    GONE = "gone"
    SAME = "same"

    @property
    def to_ask(self) -> bool:
        """The host has to be looked at before it counts as known."""
        return self in (Edit.NEW, Edit.CHANGED, Edit.RENAMED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One host. `was`: its former name; `what`: `addr 10.0.0.2 -> 10.0.0.9`, one for each key."""

    name: str
    edit: Edit
    what: tuple[str, ...] = ()
    was: str | None = None


def entry_of(host: Host) -> dict[str, Any]:
    """A host's entry as it is remembered."""
    return {**codec.encode(host), "labels": dict(host.labels)}


def changes(known: Mapping[str, Mapping[str, Any] | None], now: Sequence[Host]) -> list[Change]:
    """Every host of the file in its order, then those that are gone.

    Args:
        known: remembered entries by name; None: the host is remembered, but not its entry.
    """
    names = {host.name for host in now}
    gone = {name: entry for name, entry in known.items() if name not in names}
    found = [_change(host, known, gone) for host in now]
    renamed = {change.was for change in found}
    return found + [Change(name=name, edit=Edit.GONE) for name in gone if name not in renamed]


def _change(
    host: Host,
    known: Mapping[str, Mapping[str, Any] | None],
    gone: Mapping[str, Mapping[str, Any] | None],
) -> Change:
    entry = entry_of(host)
    before = known.get(host.name)
    if before is not None:
        what = _differences(before, entry)
        return Change(name=host.name, edit=Edit.CHANGED if what else Edit.SAME, what=what)
    for name, other in gone.items():
        if host.name not in known and other is not None and _place(other) == _place(entry):
            return Change(name=host.name, edit=Edit.RENAMED, was=name, what=_differences(other, entry))
    return Change(name=host.name, edit=Edit.NEW)


def _place(entry: Mapping[str, Any]) -> list[Any]:
    return [entry.get(key) for key in PLACE]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys whose values differ; one that an older llmctl did not know counts when it is set."""
    keys = [key for key in now if key not in ("name", "labels") and before.get(key) != now[key]]
    told = [f"{key} {_shown(before.get(key))} -> {_shown(now[key])}" for key in keys]
    old, new = before.get("labels") or {}, now["labels"]
    for label in sorted({*old, *new}):
        if old.get(label) != new.get(label):
            told.append(f"label {label} {_shown(old.get(label))} -> {_shown(new.get(label))}")
    return tuple(told)


def _shown(value: object) -> str:
    return "-" if value is None else str(value)
