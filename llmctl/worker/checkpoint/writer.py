"""One checkpoint from tensors to commit: written by torch DCP, hashed, uploaded, read back, committed.

Whole or not at all. Runs in the training thread or beside it; then it has process groups of its own. What
fails for a passing reason is tried again, going on where it was.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from llmctl.errors import (
    ConfigError,
    DeadlineError,
    IntegrityError,
    LlmctlError,
    NotFoundError,
    TransferError,
)
from llmctl.storage.checkpoints import (
    STAGE,
    clear_step,
    committed_steps,
    publish,
    read_marker,
    temporary_folder,
)
from llmctl.storage.hashing import file_entry, verify
from llmctl.storage.retention import Retention, prune
from llmctl.wire.manifests import CheckpointManifest, FileEntry, checkpoint_name
from llmctl.worker.checkpoint.load import quiet_alone
from llmctl.worker.checkpoint.place import Place
from llmctl.worker.checkpoint.snapshot import held_bytes
from llmctl.worker.metrics import human_bytes
from llmctl.worker.session import Session

TRIES = 3
"""For the whole checkpoint; each request to a store is repeated beneath that, too."""

PAUSES_S = (1.0, 5.0)

PASSING = (TransferError, DeadlineError, IntegrityError)

FULL_BYTES = 1 << 20
"""A disk with less than this left, just after a write to it failed, is a full disk."""

FILE_BYTES = 64 << 20
FILES = 4
"""A rank's share lies in so many files where they are at least FILE_BYTES, to travel at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A committed checkpoint: its size in bytes, and where it lies."""

    step: int
    bytes: int
    uri: str


@dataclass(slots=True, kw_only=True)
class _Work:
    """How far one checkpoint has come: what is done stays done when the rest is tried again."""

    step: int
    name: str
    folder: Path
    cleared: bool = False
    written: bool = False
    entries: dict[str, FileEntry] = field(default_factory=dict)
    files: tuple[FileEntry, ...] | None = None


class Writer:
    """Writes checkpoints of one run. All ranks call `write` for the same steps in the same order.

    Args:
        session: whose groups the ranks agree by; of no other thread.
        start: the step that this attempt goes on from.
        template: the marker but for `step`, `created_at` and `files`.
        extra_files: small files that go into every checkpoint, such as the tokenizer.
        verify_upload: read every uploaded byte back before the checkpoint is committed.
        fence: raises TransferError where this attempt may not write any more; asked before each commit.
        say: a line for people, such as why something is tried again.
    """

    def __init__(
        self,
        *,
        session: Session,
        place: Place,
        template: CheckpointManifest,
        retention: Retention,
        extra_files: Mapping[str, bytes],
        start: int = 0,
        verify_upload: bool = True,
        fence: Callable[[], None] | None = None,
        say: Callable[[str], None],
    ) -> None:
        self._session = session
        self._place = place
        self._start = start
        self._own_steps: set[int] = set()
        self._template = template
        self._retention = retention
        self._extra_files = extra_files
        self._verify_upload = verify_upload
        self._fence = fence
        self._say = say
        self._giving_up = threading.Event()

    @property
    def members(self) -> list[int]:
        """The ranks that fill one checkpoint together with this one."""
        return list(range(self._session.world)) if self._place.shared else list(self._session.host_ranks)

    def write(self, step: int, tensors: Mapping[str, Tensor]) -> Written:
        """Write, hash and commit one checkpoint of which `tensors` are this rank's part; prune older ones.

        Raises:
            TransferError, DeadlineError, IntegrityError: any rank could not, also when tried again; nothing
            of it is left on this host. On all ranks.
        """
        name = temporary_folder(step, self._template.run_id, self._template.attempt)
        work = _Work(step=step, name=name, folder=Path(self._place.desk.where(name)))
        try:
            return self._persist(work, tensors)
        finally:
            if self._owns_desk:
                shutil.rmtree(work.folder, ignore_errors=True)

    def give_up(self) -> None:
        """Make no further try; what is under way goes on."""
        self._giving_up.set()

    def _persist(self, work: _Work, tensors: Mapping[str, Tensor]) -> Written:
        for pause in (*PAUSES_S, None):
            try:
                return self._once(work, tensors)
            except PASSING as error:  # agreed on: the same on all ranks
                if pause is None:
                    raise
                self._say(f"{error.line()}; checkpoint {work.step} is tried again in {pause:.0f} s")
            self._giving_up.wait(pause)
        raise AssertionError("the last try returns or raises")

    def _once(self, work: _Work, tensors: Mapping[str, Tensor]) -> Written:
        if not work.written:
            self._together(lambda: self._prepare(work))
            self._together(lambda: self._write(work.folder, tensors))
            work.written = True
        if work.files is None:
            work.files = self._hash_files(work)
        files = work.files  # a commit that is tried again may have renamed the folder already
        manifest = dataclasses.replace(self._template, step=work.step, created_at=time.time(), files=files)
        self._together(lambda: self._commit(work.name, manifest))
        return Written(
            step=work.step,
            bytes=sum(file.size for file in files),
            uri=self._place.store.where(checkpoint_name(work.step)),
        )

    @property
    def _desk(self) -> Path:
        return Path(self._place.desk.uri)

    @property
    def _owns_desk(self) -> bool:
        return self._session.is_first if self._place.desk_is_shared else self._session.leader

    def _together(self, work: Callable[[], None]) -> None:
        """Do `work` on this rank and go on only when all ranks could."""

        def explained() -> None:
            try:
                work()
            except LlmctlError:  # a TransferError is an OSError, too
                raise
            except OSError as error:
                raise _failure(error, self._desk) from error

        self._session.together(explained)

    def _prepare(self, work: _Work) -> None:
        """An empty folder on the desk, and no rest of a dead writer's in the store."""
        if self._place.commits(self._session):
            self._refuse_another_writer()
        if self._owns_desk:
            shutil.rmtree(work.folder, ignore_errors=True)
            work.folder.mkdir(parents=True)
            if self._session.is_first or not self._place.shared:
                for name, content in self._extra_files.items():
                    (work.folder / name).write_bytes(content)
        if self._place.uploads and self._session.is_first and not work.cleared:
            clear_step(self._place.store, work.step)
            work.cleared = True

    def _refuse_another_writer(self) -> None:
        """A training goes on from the newest checkpoint. So a newer one that is not its own tells that
        another run saves here at the same time, and each would replace and remove the other's.

        Raises:
            ConfigError: there is one.
        """
        store = self._place.store
        for step in committed_steps(store):
            if step <= self._start or step in self._own_steps:
                continue
            try:
                found = read_marker(store, step)
            except NotFoundError:
                continue  # pruned since the look: the others there will tell
            if found.run_id == self._template.run_id and found.attempt > self._template.attempt:
                raise ConfigError(
                    f"{store.uri}: attempt {found.attempt} of this run saves there now",
                    hint=f"attempt {self._template.attempt} is over; nothing is lost",
                    stage=STAGE,
                )
            if found.run_id != self._template.run_id:
                raise ConfigError(
                    f"{store.uri}: {found.run_id} saves there, too: checkpoint {step} is its own",
                    hint="give every run a checkpoint.uri of its own",
                    stage=STAGE,
                )

    def _write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """One DCP save: over all ranks where they fill one checkpoint, else over each host's ranks."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        group = self._session.group if self._place.shared else self._session.host_group
        files = min(FILES, 1 + sum(map(held_bytes, tensors.values())) // FILE_BYTES)
        try:
            with quiet_alone():
                save(
                    dict(tensors),
                    storage_writer=FileSystemWriter(folder, thread_count=files),
                    process_group=group,
                    no_dist=group is None,
                )
        except CheckpointException as error:
            rank, (reason, _) = next(iter(error.failures.items()))
            raise _failure(reason, self._desk, f"rank {rank}: ") from error
        # DCP's writer reports a full disk as a RuntimeError of its stream.
        except RuntimeError as error:
            raise _failure(error, self._desk) from error

    def _hash_files(self, work: _Work) -> tuple[FileEntry, ...]:
        """Entries of all files of the checkpoint. Ranks that see the same folder share them."""
        shared = self._place.desk_is_shared
        members = list(range(self._session.world)) if shared else list(self._session.host_ranks)

        def hash_own() -> None:
            paths = sorted(path for path in work.folder.iterdir() if path.is_file())
            own = paths[members.index(self._session.rank) :: len(members)]
            left = [path for path in own if path.name not in work.entries]
            with ThreadPoolExecutor(FILES, thread_name_prefix="checkpoint-files") as pool:
                # An upload that is done is kept even where another one of the same try fails.
                for done in [pool.submit(self._send, work, path) for path in left]:
                    done.result()

        self._together(hash_own)
        told = self._session.gather(list(work.entries.values()))
        entries = [entry for rank in self.members for entry in told[rank]]
        return tuple(sorted(entries, key=lambda entry: entry.path))

    def _send(self, work: _Work, path: Path) -> None:
        """Hash one file and, where the store is remote, bring it there and read it back."""
        entry = file_entry(path, path.name)
        if self._place.uploads:
            remote = f"{checkpoint_name(work.step)}/{path.name}"
            self._place.store.put_file(path, remote)
            if self._verify_upload:
                verify(self._place.store, dataclasses.replace(entry, path=remote))
        work.entries[path.name] = entry

    def _commit(self, temporary: str, manifest: CheckpointManifest) -> None:
        if not self._place.commits(self._session):
            return
        if self._fence is not None:
            self._fence()
        self._own_steps.add(manifest.step)
        publish(self._place.store, None if self._place.uploads else temporary, manifest)
        try:
            prune(self._place.store, self._retention, newest=manifest.step)
        except LlmctlError as error:  # the checkpoint is there all the same, and the next prune removes more
            self._say(f"older checkpoints could not be removed: {error.line()}")


def import_dcp() -> None:
    """Import DCP (half a second) before the first save needs it."""
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
