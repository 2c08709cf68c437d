"""Where checkpoints go, and whether all hosts see the same place: found out by looking, not by assuming."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from llmctl.errors import LlmctlError, PreflightError
from llmctl.storage.checkpoints import clear_stale
from llmctl.storage.files import Store, open_store
from llmctl.storage.local import LocalStore
from llmctl.wire.layout import RunLayout
from llmctl.wire.specs import NodeSpec
from llmctl.worker.metrics import human_bytes
from llmctl.worker.session import Session

LEFTOVER_S = 24 * 3600.0
"""What a writer has not finished after so long is taken for left. Long, because others may use the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A store for checkpoints, as this rank sees it.

    Attributes:
        store: where committed checkpoints lie.
        desk: the local store in which ranks write a checkpoint; `store` itself where that is a local folder.
        shared: all hosts see the same `store`. If not, every host keeps a whole copy of its own.
    """

    store: Store
    desk: LocalStore
    shared: bool

    @property
    def uploads(self) -> bool:
        """Files are written on the desk and then sent to the store."""
        return self.store.local_root is None

    @property
    def desk_is_shared(self) -> bool:
        """Every rank sees the files of every other on the desk."""
        return self.shared and not self.uploads

    def commits(self, session: Session) -> bool:
        """Whether this rank is the one that commits to the store that it sees."""
        return session.is_first if self.shared else session.leader


def open_place(session: Session, spec: NodeSpec, run_dir: str) -> Place:
    """The place that the job names, or the run directory's own folder; all ranks call this together.

    Raises:
        LlmctlError: it can't be opened or written to, on whatever host.
    """
    own = RunLayout(run_dir).checkpoints
    failure = None
    try:
        store = open_store(spec.checkpoint_uri or own)
        if store.local_root is not None:
            store.local_root.mkdir(parents=True, exist_ok=True)
    except LlmctlError as error:
        failure = error
    except OSError as error:
        failure = PreflightError(f"{error.filename}: {error.strerror}", stage="checkpoint")
    session.agree(failure)
    if store.local_root is None:
        return _open_remote(session, store, Path(own, ".desk.part"))
    shared = _is_shared(session, store.local_root)
    place = Place(store=store, desk=LocalStore(store.local_root), shared=shared)
    if place.commits(session):
        clear_stale(store, spec.run_id, spec.attempt)
    return place


def _open_remote(session: Session, store: Store, desk: Path) -> Place:
    """Rests of the dead go: this run's on the desk, and in the store what is too old to be alive. What a dead
    attempt left of a step that is saved again goes then."""

    def tidy() -> None:
        if session.leader:
            shutil.rmtree(desk, ignore_errors=True)
        if session.is_first:
            store.cleanup(LEFTOVER_S)

    session.together(tidy)
    return Place(store=store, desk=LocalStore(desk), shared=True)


def _is_shared(session: Session, root: Path) -> bool:
    """Rank 0 leaves a file with a random name; can every host's first rank see it?"""
    if len(session.host_leaders) == 1:
        return True
    token = root / f".seen-{secrets.token_hex(8)}.part"
    if session.is_first:
        token.touch()
    token = root / session.gather(token.name)[0]
    seen = session.gather(token.exists())
    if session.is_first:
        token.unlink(missing_ok=True)
    return all(seen[leader] for leader in session.host_leaders)


def check_room(session: Session, place: Place, needed: int) -> str | None:
    """Whether one checkpoint of `needed` bytes fits, before hours are spent on what can't be kept.

    Returns a warning where it fits, but barely.

    Raises:
        PreflightError: it does not fit, on whatever host.
    """
    folder = place.desk.local_root or Path()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    failure = None
    if free < needed:
        failure = PreflightError(
            f"{folder}: a checkpoint needs {human_bytes(needed)}, {human_bytes(free)} are free",
            hint="free some space, or set checkpoint.uri to a larger place",
            stage="checkpoint",
        )
    session.agree(failure)
    if free < 2 * needed:
        return f"{folder}: room for one checkpoint ({human_bytes(needed)}), not for the next beside it"
    return None
