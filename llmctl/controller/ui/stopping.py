"""What a stop proved on one host, in one line. Pure."""

from __future__ import annotations

from llmctl.controller.ui.format import duration
from llmctl.wire.records import StopReport


def report_line(host: str, report: StopReport) -> str:
    """`a  checkpoint 1216 committed · 4 processes ended in 2.1 s · no process, port or GPU memory left`."""
    parts = []
    if report.checkpoint_step is not None:
        parts.append(f"last checkpoint {report.checkpoint_step}")
    if report.ended:
        plural = "" if report.ended == 1 else "es"
        parts.append(f"{report.ended} process{plural} ended in {duration(report.seconds)}")
    else:
        parts.append(f"had {report.state.value} already")
    parts.append(
        "STILL THERE: " + ", ".join(report.left) if report.left else "no process, port or GPU memory left"
    )
    return f"{host}  " + " · ".join(parts)
