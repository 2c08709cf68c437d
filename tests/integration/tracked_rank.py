"""One rank of the recipe under torch's memory profiler: what its tensors needed at most, to a file.

Started like `llmctl.worker.train`. Every allocation and release of torch's CPU allocator is an event, whoever
asked for it (autograd, DTensor, FSDP), so the running sum is exact; the heap's own overhead is in `resident`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from llmctl.wire.exitcodes import ExitCode
from llmctl.worker.process import exit_code
from llmctl.worker.train import train

PEAK = "peak-{rank}.json"


def status_bytes(key: str) -> int:
    """A size of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def tensor_peak(tracked: profile) -> int:
    """The highest sum of all allocations minus releases."""
    assert tracked.profiler is not None
    results = tracked.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def run() -> int:
    torch.ones(8, requires_grad=True).sum().backward()
    base = status_bytes("VmRSS")
    tracked = os.environ.get("TRACK") == "1"
    if tracked:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as tracker:
            code = exit_code(train)
        tensors = tensor_peak(tracker)
    else:
        code, tensors = exit_code(train), 0
    told = {"tensors": tensors, "base": base, "resident": status_bytes("VmHWM")}
    path = Path(os.environ["LLMCTL_RUN_DIR"], PEAK.format(rank=os.environ["RANK"]))
    path.write_text(json.dumps(told))
    return code


if __name__ == "__main__":
    code = run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(ExitCode(code)) if code in set(ExitCode) else code)
