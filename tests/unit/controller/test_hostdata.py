"""What real machines print becomes facts: one pair of files per machine in tests/hostdata/<tool>."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmctl.controller.probe import gpus, network, system
from llmctl.wire import codec

DATA = Path(__file__).parents[2] / "hostdata"


def _parted(text: str, *names: str) -> list[str]:
    """A file's parts: the first, and those below `@name` lines."""
    parts = [text]
    for name in names:
        before, _, after = parts[-1].partition(f"@{name}\n")
        parts[-1:] = [before, after]
    return [part.strip() for part in parts]


def _disks(text: str) -> Any:
    table, inodes, mounts = _parted(text, "inodes", "mounts")
    return system.disks(table, mounts, inodes)


def _table(text: str) -> Any:
    return {"head": gpus.table_driver(text), "gpus": gpus.table_gpus(text)}


def _query(text: str) -> Any:
    return {"gpus": gpus.nvidia(text), "complaint": gpus.complaint(text)}


PARSERS: dict[str, Callable[[str], Any]] = {
    "nvidia-smi": _table,
    "nvidia-smi-query": _query,
    "nvidia-smi-apps": gpus.nvidia_processes,
    "xid": gpus.xids,
    "rocm-smi": gpus.amd,
    "ibstat": network.ibstat,
    "cpuinfo": system.cpu,
    "df": _disks,
    "cgroup": system.cgroup,
    "ip-addr": lambda text: network.interfaces(*_parted(text, "addresses")),
    "proc-limits": system.limits,
}
CASES = sorted(path for tool in PARSERS for path in (DATA / tool).glob("*.txt"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_captured_output_is_read_as_written_beside_it(path: Path) -> None:
    """The parser makes of each machine's output exactly what the .json beside it says."""
    found = PARSERS[path.parent.name](path.read_text(encoding="utf-8").strip())
    assert plain(found) == json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def test_every_case_names_its_origin() -> None:
    """Nobody has to guess where an output came from: README.md lists every file."""
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    assert [path.stem for path in CASES if f"{path.stem}`" not in readme] == []


def test_no_output_of_a_tool_breaks_another_parser() -> None:
    """Whatever a tool prints, a parser gives facts or none: it never raises."""
    for path in CASES:
        for parse in PARSERS.values():
            parse(path.read_text(encoding="utf-8").strip())


def plain(found: Any) -> Any:
    """JSON values without fields that have their default: what a case is about stays readable."""
    if isinstance(found, dict):
        return {key: plain(value) for key, value in found.items()}
    if isinstance(found, tuple):
        return [plain(value) for value in found]
    if hasattr(found, "__dataclass_fields__"):
        fields = found.__dataclass_fields__.items()
        return {n: plain(getattr(found, n)) for n, f in fields if getattr(found, n) != f.default}
    return codec.encode(found)
