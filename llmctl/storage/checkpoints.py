"""The checkpoints of one store: which are whole, what they say, and how one becomes whole.

A folder `step-00000100` is a checkpoint when COMMIT.json lies in it, which is written last. Needs no torch:
the controller looks at checkpoints by the same functions as the ranks that write them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from llmctl.errors import IntegrityError, NotFoundError
from llmctl.storage.files import Store, StoreFile, open_store
from llmctl.storage.findings import Finding, Progress, damages
from llmctl.storage.uris import join
from llmctl.wire import codec
from llmctl.wire.manifests import COMMIT_MARKER, CheckpointManifest, FileEntry, checkpoint_name

STAGE = "checkpoint"

PARALLEL = 8
"""Requests under way at once while markers are read or files fetched."""

_IN_STEP = re.compile(r"step-(\d{8})/(.+)", re.S)
_WRITING = re.compile(r"\.tmp-step-(\d{8})-(.+)-(\d+)\.part")


class State(str, enum.Enum):  # noqa: UP042 - hosts may have Python 3.10
    """What a folder of the store is, by its marker and by the sizes of its files."""

    COMMITTED = "committed"
    UNFINISHED = "unfinished"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One checkpoint as a listing shows it.

    Attributes:
        folder: below the store; empty where the store itself is the checkpoint.
        files, bytes: what lies there, the marker left out.
        at: POSIX time of the commit, else of the last change; 0: the store tells nothing.
        problem: why it is not COMMITTED, in words.
    """

    step: int
    folder: str
    state: State
    files: int
    bytes: int
    at: float
    manifest: CheckpointManifest | None = None
    problem: str = ""


class Listing:
    """What one walk through a store has found, by step; markers are read only when asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: dict[int, list[StoreFile]] = {}
        for file in store.list():
            if found := _IN_STEP.fullmatch(file.path):
                self._files.setdefault(int(found[1]), []).append(dataclasses.replace(file, path=found[2]))

    @property
    def steps(self) -> list[int]:
        """Every step that has any file, oldest first."""
        return sorted(self._files)

    @property
    def committed(self) -> list[int]:
        """Steps that have a marker, oldest first."""
        return [step for step in self.steps if any(f.path == COMMIT_MARKER for f in self._files[step])]

    def judge(self, step: int) -> Checkpoint:
        """One step by its marker and the sizes of its files; contents are not read."""
        return _judge(self._store, checkpoint_name(step), step, self._files[step])


def committed_steps(store: Store) -> list[int]:
    """Steps of the checkpoints that have a marker, oldest first."""
    return Listing(store).committed


def survey(store: Store) -> list[Checkpoint]:
    """Everything in the store that is or will be a checkpoint, oldest first. The store may be one itself."""
    files = store.list()
    if any(file.path == COMMIT_MARKER for file in files):
        return [_judge(store, "", None, files)]
    listing = Listing(store)
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="markers") as pool:
        found = list(pool.map(listing.judge, listing.steps))
    return sorted([*found, *_being_written(store)], key=lambda one: (one.step, one.folder))


def read_marker(store: Store, step: int) -> CheckpointManifest:
    """The manifest of a committed checkpoint.

    Raises:
        NotFoundError: no committed checkpoint of that step. IntegrityError: not a manifest.
    """
    return _read_marker(store, checkpoint_name(step))


def findings(
    store: Store, folder: str, manifest: CheckpointManifest, progress: Progress | None = None
) -> list[Finding]:
    """Read every file of a checkpoint and list all that differ from the marker; see `damages`.

    Args:
        folder: the checkpoint below the store; empty where the store is the checkpoint.
    """
    return damages(store, entries_below(folder, manifest), progress)


def entries_below(folder: str, manifest: CheckpointManifest) -> list[FileEntry]:
    """A checkpoint's files with their paths below the store."""
    return [dataclasses.replace(entry, path=_below(folder, entry.path)) for entry in manifest.files]


def verify_files(store: Store, folder: str, manifest: CheckpointManifest) -> None:
    """Read every file of a checkpoint and compare it with the marker.

    Raises:
        IntegrityError: names the first file that is not what was saved, and how many more there are.
    """
    found = findings(store, folder, manifest)
    if found:
        more = f" (and {len(found) - 1} more files)" if len(found) > 1 else ""
        raise IntegrityError(found[0].problem + more, stage=STAGE)


def temporary_folder(step: int, run_id: str, attempt: int) -> str:
    """Where a checkpoint is written before it gets its name; stores hide such names in listings."""
    return f".tmp-{checkpoint_name(step)}-{run_id}-{attempt}.part"


def publish(store: Store, temporary: str | None, manifest: CheckpointManifest) -> None:
    """Give the files in `temporary` their final name, then commit them; None: they lie there already.

    A folder of that name without a marker is a dead attempt's. One with a marker loses it before anything
    else changes, so at no moment does a marker stand beside files that are not its own. May be repeated.
    """
    name = checkpoint_name(manifest.step)
    if temporary is not None and _is_folder(store, temporary):
        remove(store, name)
        store.rename(temporary, name)
    store.write_bytes(_below(name, COMMIT_MARKER), codec.dumps(manifest).encode())


def remove(store: Store, folder: str) -> None:
    """Remove a checkpoint, or what is left of one. The marker goes first: a removal that is cut short must
    not leave a checkpoint with holes."""
    store.delete(_below(folder, COMMIT_MARKER))
    store.delete(folder)


def clear_step(store: Store, step: int) -> None:
    """Make a remote store ready for the files of `step`: what a dead writer left of it goes, also parts of
    uploads that the store keeps open."""
    name = checkpoint_name(step)
    remove(store, name)
    open_store(join(store.uri, name)).cleanup(0.0)


def clear_stale(store: Store, run_id: str, attempt: int) -> None:
    """Remove what dead attempts of this run were writing; other runs' folders may be alive and stay."""
    if store.local_root is None:
        return
    for folder in store.local_root.glob(".tmp-step-*.part"):
        found = _WRITING.fullmatch(folder.name)
        if found and found[2] == run_id and int(found[3]) <= attempt:
            shutil.rmtree(folder, ignore_errors=True)


def _is_folder(store: Store, path: str) -> bool:
    """False where an earlier try has given it its final name already."""
    return store.local_root is None or (store.local_root / path).is_dir()


def _below(folder: str, path: str) -> str:
    return f"{folder}/{path}" if folder else path


def _read_marker(store: Store, folder: str) -> CheckpointManifest:
    return codec.loads(CheckpointManifest, store.read_bytes(_below(folder, COMMIT_MARKER)))


def _judge(store: Store, folder: str, step: int | None, files: Sequence[StoreFile]) -> Checkpoint:
    marker = None
    if any(file.path == COMMIT_MARKER for file in files):
        # Gone since the listing: it is being removed.
        with contextlib.suppress(NotFoundError):
            marker = store.read_bytes(_below(folder, COMMIT_MARKER))
    return judged(folder, step, files, marker)


def judged(folder: str, step: int | None, files: Sequence[StoreFile], marker: bytes | None) -> Checkpoint:
    """What a folder is, by the files in it and what its marker says.

    Args:
        step: what the folder's name says, None where it says nothing.
        files: paths relative to the folder.
        marker: the text of COMMIT.json; None: there is none.
    """
    sizes = {file.path: file.size for file in files if file.path != COMMIT_MARKER}
    found = Checkpoint(
        step=step or 0,
        folder=folder,
        state=State.UNFINISHED,
        files=len(sizes),
        bytes=sum(sizes.values()),
        at=max((file.modified for file in files), default=0.0),
        problem=f"no {COMMIT_MARKER}",
    )
    if marker is None:
        return found
    try:
        manifest = codec.loads(CheckpointManifest, marker)
    except IntegrityError as error:
        return dataclasses.replace(found, state=State.DAMAGED, problem=f"{COMMIT_MARKER}: {error.message}")
    problem = _problem(manifest, step, sizes)
    return dataclasses.replace(
        found,
        step=manifest.step if step is None else step,
        state=State.DAMAGED if problem else State.COMMITTED,
        at=manifest.created_at or found.at,
        manifest=manifest,
        problem=problem,
    )


def _problem(manifest: CheckpointManifest, step: int | None, sizes: dict[str, int]) -> str:
    if step is not None and manifest.step != step:
        return f"{COMMIT_MARKER} is of step {manifest.step}"
    wrong = [entry for entry in manifest.files if sizes.get(entry.path) != entry.size]
    if not wrong:
        return ""
    first, more = wrong[0], f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    if first.path not in sizes:
        return f"{first.path}{more} missing"
    return f"{first.path}{more}: {sizes[first.path]} bytes, not {first.size}"


def _being_written(store: Store) -> list[Checkpoint]:
    """Temporary folders of a local store: alive or left by the dead, nobody can tell from here."""
    if store.local_root is None:
        return []
    found = []
    for folder in store.local_root.glob(".tmp-step-*.part"):
        name = _WRITING.fullmatch(folder.name)
        if name is None:
            continue
        try:
            stats = [path.stat() for path in folder.glob("*") if path.is_file()]
            at = max((stat.st_mtime for stat in stats), default=folder.stat().st_mtime)
        except FileNotFoundError:
            continue  # it has just become a checkpoint, or is being removed
        found.append(
            Checkpoint(
                step=int(name[1]),
                folder=folder.name,
                state=State.UNFINISHED,
                files=len(stats),
                bytes=sum(stat.st_size for stat in stats),
                at=at,
                problem=f"written by {name[2]}, attempt {name[3]}",
            )
        )
    return found
