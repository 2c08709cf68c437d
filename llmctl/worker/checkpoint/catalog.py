"""The checkpoints of one store: which are whole, what they say, and how one becomes whole.

A folder `step-00000100` is a checkpoint when COMMIT.json lies in it, which is written last.
"""

from __future__ import annotations

import dataclasses
import re
import shutil

from llmctl.storage.files import Store
from llmctl.storage.hashing import verify
from llmctl.wire import codec
from llmctl.wire.manifests import COMMIT_MARKER, CheckpointManifest, checkpoint_name

_MARKER = re.compile(r"step-(\d{8})/" + re.escape(COMMIT_MARKER))
_ANY_FILE = re.compile(r"step-(\d{8})/.")


def temporary_folder(step: int, run_id: str, attempt: int) -> str:
    """Where a checkpoint is written before it gets its name; stores hide such names in listings."""
    return f".tmp-{checkpoint_name(step)}-{run_id}-{attempt}.part"


def committed_steps(store: Store) -> list[int]:
    """Steps of the whole checkpoints, oldest first."""
    return sorted(int(found[1]) for file in store.list() if (found := _MARKER.fullmatch(file.path)))


def read_marker(store: Store, step: int) -> CheckpointManifest:
    """The manifest of a committed checkpoint.

    Raises:
        NotFoundError: no committed checkpoint of that step. IntegrityError: not a manifest.
    """
    return codec.loads(CheckpointManifest, store.read_bytes(f"{checkpoint_name(step)}/{COMMIT_MARKER}"))


def verify_files(store: Store, folder: str, manifest: CheckpointManifest) -> None:
    """Read every file of a checkpoint and compare it with the marker.

    Args:
        folder: the checkpoint below the store; empty where the store is the checkpoint.

    Raises:
        IntegrityError: names the first file that is not what was saved.
    """
    for entry in manifest.files:
        path = f"{folder}/{entry.path}" if folder else entry.path
        verify(store, dataclasses.replace(entry, path=path))


def publish(store: Store, temporary: str | None, manifest: CheckpointManifest) -> None:
    """Give the files in `temporary` their final name, then commit them; None: they lie there already.

    A folder of that name without a marker is a dead attempt's. One with a marker loses it before anything
    else changes, so at no moment does a marker stand beside files that are not its own.
    """
    name = checkpoint_name(manifest.step)
    if temporary is not None:
        store.delete(f"{name}/{COMMIT_MARKER}")
        store.delete(name)
        store.rename(temporary, name)
    store.write_bytes(f"{name}/{COMMIT_MARKER}", codec.dumps(manifest).encode())


def prune(store: Store, *, keep: int, newest: int) -> list[int]:
    """Remove all but the `keep` newest checkpoints up to the just committed `newest`, and half-written ones
    before it. Returns the removed steps."""
    committed = [step for step in committed_steps(store) if step <= newest]
    kept = set(committed[-max(1, keep) :])
    present = {int(found[1]) for file in store.list() if (found := _ANY_FILE.match(file.path))}
    removed = sorted(step for step in present if step < newest and step not in kept)
    for step in removed:
        # The marker goes first: a deletion that is cut short must not leave a checkpoint with holes.
        store.delete(f"{checkpoint_name(step)}/{COMMIT_MARKER}")
        store.delete(checkpoint_name(step))
    return removed


def clear_stale(store: Store, run_id: str, attempt: int) -> None:
    """Remove what dead attempts of this run were writing; other runs' folders may be alive and stay."""
    if store.local_root is None:
        return
    dead = re.compile(rf"\.tmp-step-\d{{8}}-{re.escape(run_id)}-(\d+)\.part")
    for folder in store.local_root.glob(".tmp-step-*.part"):
        found = dead.fullmatch(folder.name)
        if found and int(found[1]) <= attempt:
            shutil.rmtree(folder, ignore_errors=True)
