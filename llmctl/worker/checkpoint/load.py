"""Resuming: agree on the newest whole checkpoint, check every byte of it, give it to all ranks."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmctl.errors import ConfigError, IntegrityError
from llmctl.storage.cache import fetch
from llmctl.storage.checkpoints import PARALLEL, committed_steps, entries_below, read_marker, verify_files
from llmctl.wire.codec import encode
from llmctl.wire.manifests import CheckpointManifest, checkpoint_name
from llmctl.worker.checkpoint.place import Place
from llmctl.worker.checkpoint.state import random_tensors, set_random_state
from llmctl.worker.model.config import parse_model_config
from llmctl.worker.parallel.replicas import broadcast
from llmctl.worker.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The checkpoint to resume from. `holders`: first ranks of the hosts that have it; the lowest one gives
    it to hosts that lack it."""

    step: int
    manifest: CheckpointManifest
    holders: tuple[int, ...]


def find_latest(session: Session, place: Place) -> Found | None:
    """The newest checkpoint that is committed anywhere, the same answer on all ranks.

    Every host that committed has a whole, hashed copy, and it was committed only after all ranks had
    written theirs. So one host that holds it is enough; the others get it over the network.
    """
    looks = session.leader if not place.shared else session.is_first
    steps: list[int] = []

    def look() -> None:
        if looks:
            steps.extend(committed_steps(place.store))

    session.together(look)
    told = session.gather(steps)
    newest = max((step for rank_steps in told for step in rank_steps), default=None)
    if newest is None:
        return None
    manifests: list[CheckpointManifest] = []

    def read() -> None:
        if newest in steps:
            manifests.append(read_marker(place.store, newest))

    session.together(read)
    markers = {rank: found[0] for rank, found in enumerate(session.gather(manifests)) if found}
    manifest = max(markers.values(), key=lambda marker: marker.attempt)
    holders = tuple(rank for rank, marker in markers.items() if _same_save(marker, manifest))
    return Found(step=newest, manifest=manifest, holders=session.host_leaders if place.shared else holders)


def _same_save(one: CheckpointManifest, other: CheckpointManifest) -> bool:
    """Whether two hosts' copies of a step hold the same state: a host that was away may have that step of
    an attempt whose later steps the others never had."""
    return (one.run_id, one.attempt) == (other.run_id, other.attempt)


def restore(
    session: Session, place: Place, found: Found, tensors: dict[str, Tensor], device: torch.device
) -> None:
    """Fill `tensors` in place with what was saved, on all ranks.

    Raises:
        IntegrityError: a file is not what was saved; names it. On all ranks.
    """
    holds = session.host_ranks[0] in found.holders
    folder = Path(place.desk.where(checkpoint_name(found.step)))
    session.together(lambda: _check_files(place, found) if holds and session.leader else None)
    session.together(lambda: _read(folder, tensors, session.rank, device) if holds else None)
    if place.uploads and session.leader:
        shutil.rmtree(folder, ignore_errors=True)
    if len(found.holders) < len(session.host_leaders):
        broadcast(tensors.values(), source=found.holders[0])


def _check_files(place: Place, found: Found) -> None:
    """Verify every file where it lies, or while it is fetched to this host."""
    name = checkpoint_name(found.step)
    try:
        if not place.uploads:
            # DCP names the save in its metadata, so that each host's copy has hashes of its own.
            manifest = found.manifest if place.shared else read_marker(place.store, found.step)
            verify_files(place.store, name, manifest)
            return
        remote = entries_below(name, found.manifest)
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="fetch") as pool:
            fetched = pool.map(lambda one: fetch(place.store, one, Path(place.desk.where(one.path))), remote)
            list(fetched)
    except IntegrityError as error:
        hint = f"remove {place.store.where(name)} to resume from the one before it"
        raise IntegrityError(error.message, hint=hint, stage="checkpoint") from error


def _read(folder: Path, tensors: dict[str, Tensor], rank: int, device: torch.device) -> None:
    """Load the files of one checkpoint into `tensors`, and this rank's random state if it has one."""
    names = saved_names(folder)
    random = {name: tensor for name, tensor in random_tensors(rank, device).items() if name in names}
    read_tensors(folder, {**tensors, **random})
    set_random_state(random, device)


def saved_names(folder: Path) -> set[str]:
    """Names of the tensors in a checkpoint whose files were verified."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    return set(FileSystemReader(folder).read_metadata().state_dict_metadata)


def read_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` in place from a checkpoint whose files were verified; needs no process group.

    Raises:
        IntegrityError: a tensor is missing or has another shape.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with quiet_alone():
            load(tensors, storage_reader=FileSystemReader(folder), no_dist=True)
    except (CheckpointException, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise IntegrityError(f"{folder}: does not fit this model: {reason}", stage="checkpoint") from error


@contextmanager
def quiet_alone() -> Iterator[None]:
    """Without DCP's warning that it works in a single process, which is what it was asked to do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def check_model(found: Found, model: dict[str, object]) -> None:
    """Refuse a checkpoint of another model before any tensor is read.

    Raises:
        ConfigError: names the fields that differ.
    """
    # A marker of an older llmctl lacks the fields that came later; their defaults are what it trained with.
    saved = encode(parse_model_config(found.manifest.model))
    names = sorted(name for name in {*saved, *model} if saved.get(name) != model.get(name))
    if names:
        told = ", ".join(f"{name} {saved.get(name)} there, {model.get(name)} here" for name in names)
        raise ConfigError(
            f"checkpoint {found.step} is of another model: {told}",
            hint="set checkpoint.uri to another folder, or resume: false",
            stage="checkpoint",
        )
