"""Saving: all ranks write with torch DCP, every file is hashed, one rank commits: whole or not at all."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llmctl.errors import LlmctlError, TransferError
from llmctl.storage.hashing import file_entry
from llmctl.wire.manifests import CheckpointManifest, FileEntry, checkpoint_name
from llmctl.worker.checkpoint.catalog import prune, publish, temporary_folder
from llmctl.worker.checkpoint.load import quiet_alone
from llmctl.worker.checkpoint.place import Place
from llmctl.worker.metrics import human_bytes
from llmctl.worker.session import Session

STAGE = "checkpoint"

FULL_BYTES = 1 << 20
"""A disk with less than this left, just after a write to it failed, is a full disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A committed checkpoint: its size in bytes, how long training stood still, and where it lies."""

    step: int
    bytes: int
    stalled_s: float
    uri: str


class Saver:
    """Saves checkpoints of one run. All ranks call `save` at the same step.

    Args:
        template: the marker but for `step`, `created_at` and `files`.
        extra_files: small files that go into every checkpoint, such as the tokenizer.
    """

    def __init__(
        self,
        *,
        session: Session,
        place: Place,
        template: CheckpointManifest,
        keep: int,
        extra_files: Mapping[str, bytes],
    ) -> None:
        self._session = session
        self._place = place
        self._template = template
        self._keep = keep
        self._extra_files = extra_files

    def save(self, step: int, tensors: dict[str, Tensor]) -> Saved:
        """Write, hash and commit one checkpoint; remove those beyond `keep`.

        Raises:
            TransferError: any rank could not; nothing of it is left. On all ranks.
        """
        began = time.monotonic()
        name = temporary_folder(step, self._template.run_id, self._template.attempt)
        folder = Path(self._place.desk.where(name))
        try:
            self._together(lambda: self._prepare(folder))
            self._together(lambda: self._write(folder, tensors))
            files = self._hash_files(folder, step)
            manifest = dataclasses.replace(self._template, step=step, created_at=time.time(), files=files)
            self._together(lambda: self._commit(name, manifest))
        finally:
            if self._owns_desk:
                shutil.rmtree(folder, ignore_errors=True)
        return Saved(
            step=step,
            bytes=sum(file.size for file in files),
            stalled_s=time.monotonic() - began,
            uri=self._place.store.where(checkpoint_name(step)),
        )

    def warm_up(self) -> None:
        """Import DCP (half a second) in a thread beside the first steps, not in the first save."""
        threading.Thread(target=_import_dcp, name="dcp-import", daemon=True).start()

    @property
    def _desk(self) -> Path:
        return Path(self._place.desk.uri)

    @property
    def _owns_desk(self) -> bool:
        return self._session.is_first if self._place.desk_is_shared else self._session.leader

    def _together(self, work: Callable[[], None]) -> None:
        """Do `work` on this rank and go on only when all ranks could."""
        failure: LlmctlError | None = None
        try:
            work()
        except LlmctlError as error:
            failure = error
        except OSError as error:
            failure = _failure(error, self._desk)
        self._session.agree(failure)

    def _prepare(self, folder: Path) -> None:
        if not self._owns_desk:
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if self._session.is_first or not self._place.shared:
            for name, content in self._extra_files.items():
                (folder / name).write_bytes(content)

    def _write(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """One DCP save: over all ranks where they fill one checkpoint, else over each host's ranks."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        group = self._session.group if self._place.shared else self._session.host_group
        try:
            with quiet_alone():
                save(
                    tensors,
                    storage_writer=FileSystemWriter(folder),
                    process_group=group,
                    no_dist=group is None,
                )
        except CheckpointException as error:
            rank, (reason, _) = next(iter(error.failures.items()))
            raise _failure(reason, self._desk, f"rank {rank}: ") from error
        # DCP's writer reports a full disk as a RuntimeError of its stream.
        except RuntimeError as error:
            raise _failure(error, self._desk) from error

    def _hash_files(self, folder: Path, step: int) -> tuple[FileEntry, ...]:
        """Entries of all files of the checkpoint. Ranks that see the same folder share the reading."""
        members = list(range(self._session.world)) if self._place.desk_is_shared else self._session.host_ranks
        mine: list[FileEntry] = []

        def work() -> None:
            paths = sorted(path for path in folder.iterdir() if path.is_file())
            for path in paths[members.index(self._session.rank) :: len(members)]:
                mine.append(file_entry(path, path.name))
                if self._place.uploads:
                    self._place.store.put_file(path, f"{checkpoint_name(step)}/{path.name}")

        self._together(work)
        told = self._session.gather(mine)
        ranks = range(self._session.world) if self._place.shared else members
        return tuple(sorted((entry for rank in ranks for entry in told[rank]), key=lambda entry: entry.path))

    def _commit(self, temporary: str, manifest: CheckpointManifest) -> None:
        if self._place.commits(self._session):
            publish(self._place.store, None if self._place.uploads else temporary, manifest)
            prune(self._place.store, keep=self._keep, newest=manifest.step)


def _import_dcp() -> None:
    import torch.distributed.checkpoint.filesystem
    import torch.distributed.checkpoint.state_dict_saver  # noqa: F401


def _failure(error: BaseException, desk: Path, who: str = "") -> TransferError:
    """One line for whatever the file system or DCP said, with the room that is left as a fact beside it."""
    cause = _root(error)
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    free = shutil.disk_usage(desk).free if desk.exists() else 0
    is_full = free < FULL_BYTES and not isinstance(cause, OSError)
    reason = "no space left on the disk" if is_full else lines[0]
    return TransferError(
        f"the checkpoint could not be saved: {who}{reason}",
        hint=f"{human_bytes(free)} free at {desk}; the checkpoints before it are untouched",
        stage=STAGE,
    )


def _root(error: BaseException) -> BaseException:
    """The operating system's own error, where one lies below: torch's stream hides a full disk behind it."""
    below: BaseException | None = error
    while below is not None and not isinstance(below, OSError):
        below = below.__cause__ or below.__context__
    return below or error
