"""Tables as wide as the terminal: what doesn't fit is left out, column by column, never cut. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

GAP = 2


def fitting(widths: Mapping[str, int], width: int, first_to_go: Sequence[str]) -> list[str]:
    """The columns that fit into `width` characters, in their order.

    Args:
        widths: every column's widest cell or title.
        first_to_go: what a narrow terminal leaves out, in this order; other columns always stay.
    """
    shown = list(widths)
    for title in first_to_go:
        if sum(widths[left] + GAP for left in shown) - GAP <= width:
            break
        shown.remove(title)
    return shown


def needed(titles: Sequence[str], rows: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Characters that each column needs."""
    return {title: max([len(title), *(len(row[title]) for row in rows)]) for title in titles}
