"""What rank 0 tells the world: metric lines for `llmctl status`, log lines for people, TensorBoard files."""

from __future__ import annotations

import json
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable

import torch

from llmctl.wire.codec import encode
from llmctl.wire.metrics import CheckpointFailedLine, CheckpointLine, NoteLine, StepLine
from llmctl.worker.reporting import append_line


def say(text: str) -> None:
    """One line in this rank's log, with the time of day in front."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


class Metrics:
    """Writes lines where `path` is set and log lines where `speaks`; a rank other than 0 has neither."""

    def __init__(self, *, path: str | None, speaks: bool, tensorboard: str | None = None) -> None:
        self._path = path
        self._speaks = speaks
        self._board = TensorBoard(tensorboard, self.note) if tensorboard else None

    def step(self, line: StepLine, *, log: bool) -> None:
        """Record one optimizer step; `log`: also for people."""
        self._append(line)
        if log and self._speaks:
            say(step_text(line))
        if self._board:
            self._board.add(line)

    def checkpoint(self, line: CheckpointLine) -> None:
        """Record a committed checkpoint."""
        self._append(line)
        if self._speaks:
            say(checkpoint_text(line))

    def checkpoint_failed(self, line: CheckpointFailedLine) -> None:
        """Record a checkpoint that could not be saved."""
        self._append(line)

    def note(self, text: str) -> None:
        """Tell people something once."""
        self._append(NoteLine(t=time.time(), text=text))
        if self._speaks:
            say(text)

    def close(self) -> None:
        """Write out what is still on its way to TensorBoard."""
        if self._board:
            self._board.close()

    def _append(self, line: StepLine | CheckpointLine | CheckpointFailedLine | NoteLine) -> None:
        if self._path:
            append_line(self._path, json.dumps(encode(line), separators=(",", ":")))


class TensorBoard:
    """Event files, written by a thread that starts with the first step: the import must not delay it."""

    def __init__(self, folder: str, note: Callable[[str], None]) -> None:
        self._folder = folder
        self._note = note
        self._lines: queue.SimpleQueue[StepLine | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, line: StepLine) -> None:
        """Queue one step."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tensorboard", daemon=True)
            self._thread.start()
        self._lines.put(line)

    def close(self, timeout_s: float = 10.0) -> None:
        """Finish writing, for at most `timeout_s` seconds."""
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._note("TensorBoard is not installed on this host: no event files")
            return
        writer = SummaryWriter(self._folder)
        while (line := self._lines.get()) is not None:
            for name, value in scalars(line).items():
                writer.add_scalar(name, value, line.step, walltime=line.t)
        writer.close()


def scalars(line: StepLine) -> dict[str, float]:
    """The numbers of a step that are worth a curve."""
    named = {
        "train/loss": line.loss,
        "train/lr": line.lr,
        "train/grad_norm": line.grad_norm,
        "speed/tokens_per_s": line.tokens_per_s,
        "speed/data_wait": line.data_wait,
    }
    return {name: value for name, value in named.items() if value is not None}


def step_text(line: StepLine) -> str:
    """`step 420/5000 loss 3.412 lr 2.9e-04 41.2k tok/s data-wait 0.0 %`."""
    parts = [f"step {line.step}" + (f"/{line.total}" if line.total else "")]
    if line.loss is not None:
        parts.append(f"loss {line.loss:.3f}")
    if line.lr is not None:
        parts.append(f"lr {line.lr:.1e}")
    if line.tokens_per_s is not None:
        parts.append(f"{human_count(line.tokens_per_s)} tok/s")
    if line.data_wait is not None:
        parts.append(f"data-wait {100 * line.data_wait:.1f} %")
    return " ".join(parts)


def checkpoint_text(line: CheckpointLine) -> str:
    """`checkpoint 400 committed (1.1 GB, stalled 0.18 s, took 4.2 s)`."""
    took = "" if line.took_s is None else f", took {line.took_s:.1f} s"
    waited = f" ({line.waited_s:.2f} s for the one before)" if (line.waited_s or 0) >= 0.01 else ""
    stalled = f"stalled {line.stalled_s:.2f} s{waited}"
    return f"checkpoint {line.step} committed ({human_bytes(line.bytes)}, {stalled}{took})"


def human_count(value: float) -> str:
    """412, 41.2k, 3.10M."""
    if value < 1000:
        return f"{value:.0f}"
    return f"{value / 1e3:.1f}k" if value < 1e6 else f"{value / 1e6:.2f}M"


def human_bytes(value: float) -> str:
    """Bytes in decimal units: 18 kB, 1.1 GB."""
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def peak_memory(device: torch.device) -> int:
    """Peak device memory of this process in bytes; on CPU its peak resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_text(planned: int | None, peaks: list[int]) -> str:
    """The planner's claim against what the hungriest rank needed: `memory: planned 1.21 GB, peak 1.18 GB`."""
    peak = f"peak {max(peaks) / 1e9:.2f} GB on rank {peaks.index(max(peaks))}"
    return f"memory: {peak}" if planned is None else f"memory: planned {planned / 1e9:.2f} GB, {peak}"
