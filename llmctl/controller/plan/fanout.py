"""Who hands files on to whom. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 2
"""Children of one host. One would be a chain: least traffic, but every host's time behind the slowest link;
with two a link carries the files twice and eight hosts are three hops away at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One host of the tree. `parent` is None for the one that gets the files from the operator."""

    name: str
    parent: str | None
    children: int


def tree(names: Sequence[str], *, width: int = WIDTH) -> list[Branch]:
    """The hosts in an order in which every parent comes before its children."""
    count = len(names)
    return [
        Branch(
            name=name,
            parent=names[(at - 1) // width] if at else None,
            children=max(0, min(width, count - (at * width + 1))),
        )
        for at, name in enumerate(names)
    ]
