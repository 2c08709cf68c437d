"""What `hosts bootstrap` will do and did, in lines. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from llmctl.controller.execute.bootstrap import Made
from llmctl.controller.ui.format import duration, size


def plan_lines(host: str, steps: Sequence[str]) -> list[str]:
    """The steps of one host, or that there are none."""
    if not steps:
        return [f"{host}  ready, nothing to do"]
    return [f"{host}", *(f"    {number}. {step}" for number, step in enumerate(steps, 1))]


def made_line(host: str, made: Made) -> str:
    """`a  env 1f2e3d4c5b6a · 46 packages, 1.2 GB · made in 12 s · 400 MB sent by b`."""
    if made.env == "system":
        return f"{host}  {made.python} has what the job asks for · nothing changed"
    parts = [f"env {made.env[:12]}", f"{made.packages} packages, {size(made.bytes)}"]
    parts.append(f"made in {duration(made.seconds)}" if made.changed else "nothing changed")
    if made.sent:
        parts.append(f"{size(made.sent)} " + (f"came from {made.source}" if made.source else "sent"))
    return f"{host}  " + " · ".join(parts)
