"""What `hosts clean` freed on a host, in lines. Pure."""

from __future__ import annotations

from collections import Counter

from llmctl.controller.ui.format import age, names, size
from llmctl.wire.records import CleanReport

KINDS = {
    "code": ("code tree", "code trees"),
    "agent": ("agent file", "agent files"),
    "env": ("environment", "environments"),
    "wheel": ("wheel", "wheels"),
    "cache": ("cache entry", "cache entries"),
    "run": ("run", "runs"),
    "supervisor": ("supervisor's folder", "supervisors' folders"),
}


def clean_lines(host: str, report: CleanReport, *, dry_run: bool) -> list[str]:
    """`a  1.2 GB freed · 3 code trees, 2 runs · live: demo-7f3a`; a dry run lists every item below."""
    total = size(sum(item.bytes for item in report.items))
    counts = Counter(item.kind for item in report.items)
    what = ", ".join(f"{count} {KINDS[kind][count != 1]}" for kind, count in counts.items())
    verb = "would be freed" if dry_run else "freed"
    parts = [f"{total} {verb}" if report.items else "nothing to remove", what]
    parts.append(f"left alone, live: {names(list(report.live))}" if report.live else "")
    lines = [f"{host}  " + " · ".join(part for part in parts if part)]
    if dry_run:
        for item in report.items:
            lines.append(
                f"    {item.kind:<6} {item.name[:24]:<24} {size(item.bytes):>8}  {age(item.age_s)} old"
            )
    return lines + [f"    could not be removed: {failure}" for failure in report.failed]
