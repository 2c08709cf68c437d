"""`files`: what can be pulled of a run from this host. Never code/, never anything half-written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from llmctl.node import rundir
from llmctl.wire.layout import RunLayout
from llmctl.wire.manifests import COMMIT_MARKER
from llmctl.wire.records import FilesReply, RunFile

_ATTEMPT = re.compile(r"attempt-\d+\Z")
_ATTEMPT_FILE = re.compile(
    r"(rank-\d+|launcher|agent)\.log\Z|(rank-\d+|progress-\d+|hang|exit)\.json\Z"
    r"|stack-\d+\.txt\Z|(metrics|consumed-\d+)\.jsonl\Z"
)


def files(workdir: str, run_id: str) -> FilesReply:
    """Logs, records, metrics, journals, TensorBoard files and committed checkpoints. Raises NotFoundError."""
    run = rundir.find(rundir.host_layout(workdir), run_id)
    found = [entry for path in _paths(run) if (entry := _entry(run.root, path)) is not None]
    elsewhere = _checkpoint_root(run)
    root = elsewhere or run.checkpoints
    for path in _checkpoint_paths(root):
        entry = _entry(root, path)
        if entry is not None:
            found.append(RunFile(f"checkpoints/{entry.path}", entry.size, entry.mtime_ns))
    ordered = tuple(sorted(found, key=lambda entry: entry.path))
    return FilesReply(run_id=run_id, files=ordered, checkpoint_root=elsewhere)


def _checkpoint_root(run: RunLayout) -> str:
    """The folder that the job names for checkpoints; empty: none, or a store that is no folder."""
    spec = rundir.read_spec(run)
    uri = (spec.checkpoint_uri if spec else None) or ""
    path = uri[len("file://") :] if uri.startswith("file://") else uri
    return os.path.expanduser(path) if path and "://" not in path else ""


def _paths(run: RunLayout) -> Iterator[str]:
    """Absolute paths of what may be pulled, but for checkpoints."""
    yield run.node_spec
    yield run.events
    for name in _names(run.root):
        if _ATTEMPT.match(name):
            yield from _of_attempt(os.path.join(run.root, name))


def _checkpoint_paths(root: str) -> Iterator[str]:
    """Files of committed checkpoints only."""
    for name in _names(root):
        folder = os.path.join(root, name)
        if os.path.isfile(os.path.join(folder, COMMIT_MARKER)):
            yield from _below(folder)


def _of_attempt(folder: str) -> Iterator[str]:
    for name in _names(folder):
        if _ATTEMPT_FILE.match(name):
            yield os.path.join(folder, name)
    yield from _below(os.path.join(folder, "tensorboard"))


def _below(folder: str) -> Iterator[str]:
    for root, _, names in os.walk(folder):
        yield from (os.path.join(root, name) for name in names)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _entry(root: str, path: str) -> RunFile | None:
    """A regular file; a link is not followed out of the folder, and one that just went away is left out."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    if not os.path.isfile(path) or os.path.islink(path):
        return None
    return RunFile(path=os.path.relpath(path, root), size=found.st_size, mtime_ns=found.st_mtime_ns)
