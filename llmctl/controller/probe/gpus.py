"""Pure parsers of what GPU tools print: nvidia-smi (questions and table), rocm-smi, amd-smi, Xid lines.

A driver that is broken in whole or in part (`Failed to initialize NVML`, `[Unknown Error]`, a GPU that is
lost) is a fact to be told, never an error of the parser.
"""

from __future__ import annotations

import json
import re
from typing import Any

from llmctl.controller.probe.facts import Gpu
from llmctl.controller.probe.lines import whole
from llmctl.controller.probe.machine import GpuProcess, Xid

_LOST = re.compile(r"unknown error|gpu is lost|err!|gpu requires reset", re.IGNORECASE)
MIB = 1 << 20


def nvidia(text: str) -> tuple[Gpu, ...]:
    """GPUs from nvidia-smi's CSV, fields as in `script.GPU_FIELDS`, or only its first four.

    A driver that does not answer gives none; `complaint` then says why.
    """
    return tuple(gpu for line in text.splitlines() if (gpu := _nvidia_row(line)) is not None)


def _nvidia_row(line: str) -> Gpu | None:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) < 4 or not fields[0].isdigit():
        return None
    index, model, total, driver, *more = fields
    uuid, pci, used, ecc, retired, mig, mode, temperature = (*more, *[""] * 8)[:8]
    return Gpu(
        index=int(index),
        model=model,
        memory=(whole(total) or 0) * MIB,
        driver=driver,
        uuid=uuid if uuid.startswith("GPU-") else None,
        pci=pci if ":" in pci else None,
        used=None if whole(used) is None else int(used) * MIB,
        ecc_errors=whole(ecc),
        retired=retired.lower() == "yes",
        mig=mig.lower() == "enabled",
        exclusive=_exclusive(mode),
        temperature=whole(temperature),
        lost=any(_LOST.search(field) for field in (model, total, used, temperature)),
    )


def _exclusive(mode: str) -> bool:
    """`Exclusive_Process` to a question, `E. Process` in the table."""
    return mode.lower().startswith(("exclusive", "e. process", "e.process"))


def complaint(text: str) -> str | None:
    """What nvidia-smi said instead of GPUs, in one line; also where it listed some and lost others."""
    said = [line.strip() for line in text.splitlines() if line.strip() and _nvidia_row(line) is None]
    return " ".join(said)[:300] or None


def nvidia_processes(text: str) -> tuple[GpuProcess, ...]:
    """From `--query-compute-apps`, with `user=… run=…` behind a tab where /proc told them."""
    found = []
    for line in text.splitlines():
        row, _, owner = line.partition("\t")
        fields = [field.strip() for field in row.split(",", 3)]
        if len(fields) < 4 or not fields[1].isdigit():
            continue
        told = dict(pair.split("=", 1) for pair in owner.split() if "=" in pair)
        memory = whole(fields[2])
        found.append(
            GpuProcess(
                gpu=fields[0],
                pid=int(fields[1]),
                memory=None if memory is None else memory * MIB,
                name=fields[3],
                user=told.get("user") or None,
                run=told.get("run") or None,
            )
        )
    return tuple(found)


def table_driver(text: str) -> tuple[str | None, str | None]:
    """(driver, newest CUDA that it supports) from the head of nvidia-smi's table."""
    driver = re.search(r"Driver Version: (\S+)", text)
    cuda = re.search(r"CUDA Version: (\d+\.\d+)", text)
    return (driver[1] if driver else None, cuda[1] if cuda else None)


def table_gpus(text: str) -> tuple[Gpu, ...]:
    """GPUs of nvidia-smi's table: for drivers that answer no question but print their table.

    The table has two or three lines per GPU: name and bus; memory and mode; MIG. Names may be cut short.
    """
    driver = table_driver(text)[0] or "unknown"
    lines = re.split("Processes:|MIG devices:", text, maxsplit=1)[0].splitlines()
    heads = ((number, match) for number, line in enumerate(lines) if (match := _HEAD.match(line)))
    return tuple(_table_row(match, [*lines[number + 1 :], "", ""], driver) for number, match in heads)


_HEAD = re.compile(
    r"\|\s+(\d+)\s+(\S.*?)\s*\|\s*(N/A|[0-9A-Fa-f]{4,}:[0-9A-Fa-f:.]+)\s+\S+\s*\|\s*(.+?)\s*\|"
)
"""`|   0  NVIDIA A100-SXM...  On   | 00000000:01:00.0 Off |                    0 |`"""


def _table_row(head: re.Match[str], below: list[str], driver: str) -> Gpu:
    body, third = below[:2] if "+--" not in below[1] else (below[0], "")
    used = re.search(r"(\d+) ?Mi?B\s*/\s*(\d+) ?Mi?B", body)
    mode = re.search(r"\s(Default|E\. ?Process|Prohibited)\s*\|\s*\Z", body)
    # One ERR! is a broken sensor (mostly the fan's); a GPU that is lost has them in other columns as well.
    errors = f"{head[0]} {body} {third}".count("ERR!")
    return Gpu(
        index=int(head[1]),
        model=re.sub(r"\s+(?:On|Off|N/A)\Z", "", head[2]),
        memory=int(used[2]) * MIB if used else 0,
        driver=driver,
        pci=head[3] if ":" in head[3] else None,
        used=int(used[1]) * MIB if used else None,
        ecc_errors=whole(head[4]),
        mig=bool(re.search(r"\|\s*Enabled\s*\|\s*\Z", third)),
        exclusive=_exclusive(mode[1] if mode else ""),
        lost=errors > 1 or head[4] == "ERR!",
    )


def xids(text: str) -> tuple[Xid, ...]:
    """Driver faults from the kernel's log, the last of each kind; `fallen off the bus` is 79.

    Newer drivers break that sentence into three lines, of which only the first names the GPU.
    """
    found: dict[tuple[str, int], Xid] = {}
    lost = ""
    for line in text.splitlines():
        numbered = re.search(r"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+), ?(.*)", line)
        named = re.search(r"NVRM: .*?GPU (?:at PCI:)?([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2})", line)
        lost = named[1] if named else lost
        if numbered:
            xid = Xid(pci=numbered[1], code=int(numbered[2]), text=numbered[3].strip())
        elif "fallen off the bus" in line and lost:
            xid = Xid(pci=lost, code=79, text="GPU has fallen off the bus")
        else:
            continue
        found[xid.pci, xid.code] = xid
    return tuple(found.values())


def amd(text: str) -> tuple[Gpu, ...]:
    """GPUs from `rocm-smi --json`, or from `amd-smi static`; anything else gives none."""
    start = text.find("{")
    if text.lstrip().startswith("GPU:"):
        return _amd_static(text)
    try:
        document: Any = json.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        return ()
    return _rocm(document) if isinstance(document, dict) else ()


def _rocm(document: dict[str, Any]) -> tuple[Gpu, ...]:
    system = document.get("system", {})
    driver = next((str(v) for k, v in system.items() if k.lower() == "driver version"), "unknown")
    found = []
    for card, fields in document.items():
        number = re.fullmatch(r"card(\d+)", card)
        if number is None or not isinstance(fields, dict):
            continue
        told = {key.lower().strip(): str(value) for key, value in fields.items()}
        used = whole(told.get("vram total used memory (b)"))
        found.append(
            Gpu(
                index=int(number[1]),
                model=told.get("card series")
                or told.get("device name")
                or told.get("card model")
                or "AMD GPU",
                memory=whole(told.get("vram total memory (b)")) or 0,
                driver=driver,
                vendor="amd",
                used=used,
            )
        )
    return _worth_training_on(sorted(found, key=lambda gpu: gpu.index))


def _worth_training_on(found: list[Gpu]) -> tuple[Gpu, ...]:
    """Without the processor's own small GPU, where there is a real one beside it."""
    largest = max((gpu.memory for gpu in found), default=0)
    return tuple(gpu for gpu in found if gpu.memory * 16 >= largest)


def _amd_static(text: str) -> tuple[Gpu, ...]:
    found = []
    for part in re.split(r"(?m)^GPU: (?=\d)", text)[1:]:
        driver = re.search(r"(?s)DRIVER:.*?\bVERSION: (\S+)", part)
        size = re.search(r"(?s)VRAM:.*?\bSIZE: (\d+) MB", part)
        name = re.search(r"MARKET_NAME: (.+)", part)
        bus = re.search(r"BDF: (\S+)", part)
        found.append(
            Gpu(
                index=int(part.split(None, 1)[0]),
                model=name[1].strip() if name else "AMD GPU",
                memory=int(size[1]) * MIB if size else 0,
                driver=driver[1] if driver else "unknown",
                vendor="amd",
                pci=bus[1] if bus else None,
            )
        )
    return tuple(found)
