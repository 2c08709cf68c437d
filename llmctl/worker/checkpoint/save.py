"""When a checkpoint is saved, what training waits for, and what becomes of one that can't be saved.

Training stands still while its state is copied to host memory. Writing, hashing, upload and commit (`writer`)
go on in one thread beside it, and the next save waits for the last.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from llmctl.errors import ConfigError, LlmctlError
from llmctl.wire.metrics import CheckpointFailedLine, CheckpointLine
from llmctl.worker.checkpoint.memory import free_host_memory
from llmctl.worker.checkpoint.snapshot import Snapshot, held_bytes, own_share
from llmctl.worker.checkpoint.writer import Writer, import_dcp
from llmctl.worker.metrics import Metrics, human_bytes
from llmctl.worker.session import Session

WARN, STOP = "warn", "stop"

LEAVE_S = 60.0
"""How long a training that failed waits for a checkpoint that is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Times:
    """When a save began, and how long training stood still for it (None: until its end); seconds."""

    began: float
    waited_s: float
    last: bool
    stalled_s: float | None = None


class Saver:
    """Saves checkpoints of one run. All ranks call `save` at the same steps.

    Args:
        writer: brings one checkpoint to the store; has a session of its own where saves are asynchronous.
        in_background: else training waits for the whole save.
        on_failure: `warn` or `stop`.
        share: names of what this rank saves; None: all ranks hold the same tensors and find their shares.
    """

    def __init__(
        self,
        *,
        session: Session,
        writer: Writer,
        metrics: Metrics,
        in_background: bool = True,
        on_failure: str = WARN,
        share: frozenset[str] | None = None,
    ) -> None:
        if on_failure not in (WARN, STOP):
            raise ConfigError(f"checkpoint.on_failure: must be {WARN} or {STOP}, not {on_failure!r}")
        self._session = session
        self._writer = writer
        self._metrics = metrics
        self._stops = on_failure == STOP
        self._share = share
        self._snapshot = Snapshot() if in_background else None
        self._pool = ThreadPoolExecutor(1, "checkpoint", initializer=self._enter_thread)
        self._pending: Future[None] | None = None
        self._pending_since = 0.0
        self._reserved: threading.Thread | None = None
        self._failure: LlmctlError | None = None
        self._failed_in_a_row = 0
        self._took_s = 0.0

    def warm_up(self, tensors: Mapping[str, Tensor]) -> None:
        """Import DCP and allocate the host buffers in a thread beside the first steps, not in a save."""
        own = self._own(tensors)

        def prepare() -> None:
            import_dcp()
            if self._snapshot is not None:
                self._snapshot.reserve(own)

        self._reserved = threading.Thread(target=prepare, name="checkpoint-warm-up", daemon=True)
        self._reserved.start()

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        own: Mapping[str, Tensor] | None = None,
        *,
        last: bool = False,
    ) -> None:
        """Save the state after `step`: `tensors` that all ranks hold alike, and `own` ones of this rank.

        Returns once training may go on. A failure is reported when it comes; `finish` raises the last one.
        `last`: there is no training to go on with.
        """
        began = time.monotonic()
        if self._reserved is not None:
            self._reserved.join()
        self.settle()
        self._stop_if_wanted()
        waited_s = time.monotonic() - began
        state = {**self._own(tensors), **(own or {})}
        if self._snapshot is None:
            self._write(step, state, _Times(began=began, waited_s=waited_s, last=last))
            self._stop_if_wanted()
            return
        copies = self._snapshot.take(state)
        stalled_s = time.monotonic() - began
        times = _Times(began=began, waited_s=waited_s, stalled_s=stalled_s, last=last)
        self._pending_since = time.monotonic()
        self._pending = self._pool.submit(self._write, step, copies, times)

    @property
    def must_stop(self) -> bool:
        """A save has failed, and the job wants to end then. Other ranks may not know it yet."""
        return self._stops and self._failure is not None

    def expected_s(self) -> tuple[float, float]:
        """Seconds that the pending save still needs, and that one more needs, if they are like the last."""
        running = self._pending is not None and not self._pending.done()
        elapsed = time.monotonic() - self._pending_since
        return max(0.0, self._took_s - elapsed) if running else 0.0, self._took_s

    def finish(self) -> None:
        """Wait for the save that is under way; the last one of a training must be there.

        Raises:
            TransferError, DeadlineError, IntegrityError: the last save failed. On all ranks.
        """
        self.settle()
        if self._failure is not None:
            raise self._failure

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait for the save that is under way. False: it takes longer and is left alone. What is no
        LlmctlError, such as a lost rank, is raised here."""
        if self._pending is not None:
            if not wait([self._pending], timeout_s).done:
                return False
            pending, self._pending = self._pending, None
            pending.result()
        return True

    def close(self, timeout_s: float = LEAVE_S) -> None:
        """Let a save that is under way end, for so long, when training has ended in whatever way."""
        self._writer.give_up()
        if self._pending is not None:
            wait([self._pending], timeout_s)
        self._pool.shutdown(wait=False)

    def _stop_if_wanted(self) -> None:
        """All ranks have settled the same save here, so they all know of its failure."""
        if self._stops and self._failure is not None:
            raise self._failure

    def _own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._share is not None:
            return {name: tensor for name, tensor in tensors.items() if name in self._share}
        members = self._writer.members
        return own_share(tensors, members.index(self._session.rank), len(members))

    def _enter_thread(self) -> None:
        """Another thread would make itself at home on the first GPU, whatever this rank's is."""
        if self._session.device.type == "cuda":
            torch.cuda.set_device(self._session.device)

    def _write(self, step: int, state: Mapping[str, Tensor], times: _Times) -> None:
        """One save to its end, whatever that is; in the background thread, or in training's own."""
        try:
            written = self._writer.write(step, state)
        except LlmctlError as error:
            self._failed(step, error, ends=self._stops or times.last)
            return
        self._failure, self._failed_in_a_row = None, 0
        spent_s = time.monotonic() - times.began
        self._took_s = spent_s - times.waited_s
        self._metrics.checkpoint(
            CheckpointLine(
                t=time.time(),
                step=step,
                bytes=written.bytes,
                stalled_s=spent_s if times.stalled_s is None else times.stalled_s,
                uri=written.uri,
                waited_s=times.waited_s,
                took_s=self._took_s,
            )
        )

    def _failed(self, step: int, error: LlmctlError, *, ends: bool) -> None:
        self._failed_in_a_row += 1
        self._failure = error
        line = CheckpointFailedLine(
            t=time.time(), step=step, error=error.line(), in_a_row=self._failed_in_a_row
        )
        self._metrics.checkpoint_failed(line)
        goes_on = "the job ends" if ends else "training goes on without it"
        often = f" ({self._failed_in_a_row} in a row)" if self._failed_in_a_row > 1 else ""
        self._metrics.note(f"checkpoint {step} failed{often}, {goes_on}: {error.line()}")


def room_for_snapshot(session: Session, tensors: Mapping[str, Tensor], members: int) -> str | None:
    """Why one more copy of the state does not fit into some host's memory; None: it does. On all ranks.

    Args:
        members: how many ranks share one copy.
    """
    needed = sum(held_bytes(tensor) for tensor in tensors.values()) / members
    told = session.gather((session.host, needed, free_host_memory()))
    for host in dict.fromkeys(host for host, _, _ in told):
        wanted = sum(need for name, need, _ in told if name == host)
        free = min(room for name, _, room in told if name == host)
        if wanted > 0.9 * free:
            return f"{host}: a copy of the state needs {human_bytes(wanted)}, {human_bytes(free)} are free"
    return None
