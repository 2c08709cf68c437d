"""Bring a run's logs, metrics and checkpoints home: only what is missing, resumed by offset, checked.

    <dest>/<host>/node.json, events.jsonl, attempt-1/…      everything small, per host
    <dest>/checkpoints/step-00000100/                       one copy, verified against its COMMIT.json

Hosts are not trusted: the transport refuses a path that leaves the destination, and a checkpoint becomes
visible under its own name only after every file of its commit marker has the right size and hash.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.config.types import Host
from llmctl.controller.transport.pool import Connections
from llmctl.controller.transport.pull import PullItem, PullResult, pull
from llmctl.errors import HostErrors, IntegrityError, LlmctlError, TransferError
from llmctl.wire import codec
from llmctl.wire.layout import HostLayout
from llmctl.wire.manifests import COMMIT_MARKER, CheckpointManifest, FileEntry
from llmctl.wire.records import FilesReply, RunFile

CHECKPOINTS = "checkpoints/"
Progress = Callable[[str, int], None]
"""Called with a path and the bytes of it that just arrived, from several threads."""

CHECKPOINT_MARKER = re.compile(rf"checkpoints/(step-\d{{8}})/{re.escape(COMMIT_MARKER)}")
"""The only names that become folders here: a host could offer `..`."""

APPENDED = (".log", ".jsonl")
"""Files that only grow: a pull asks for what lies behind the bytes that are already here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What one pull brought: counts and bytes over the wire, and the checkpoints that are now here."""

    files: int
    bytes: int
    checkpoints: tuple[str, ...]
    errors: tuple[LlmctlError, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One host's offer: its files, the absolute folders that they and checkpoints lie in, an interpreter."""

    host: Host
    root: str
    checkpoint_root: str
    python: str
    files: tuple[RunFile, ...]


def pull_run(
    connections: Connections,
    hosts: Sequence[Host],
    archive: AgentArchive,
    run_id: str,
    dest: Path,
    *,
    checkpoints: str = "last",
    only: Callable[[str], object] | None = None,
    progress: Progress | None = None,
) -> Pulled:
    """Pull one run into `dest`.

    Args:
        checkpoints: `none`, `last` or `all` of the committed ones.
        only: which of the small files to pull, by their path in the run directory; None: all.
        progress: called as bytes arrive.

    Raises:
        HostErrors: no host could be asked. One that can't be is an entry of `Pulled.errors`.
        IntegrityError: a checkpoint does not match its commit marker; nothing of it is visible.
    """

    def offer(host: Host) -> Source:
        client = AgentClient(connections.get(host.name), host, archive)
        status = client.status(run_id)
        reply: FilesReply = client.files(run_id)
        spec = status.nodes[0].spec
        root = HostLayout(spec.workdir).run(run_id).root
        return Source(
            host=host,
            root=root,
            checkpoint_root=reply.checkpoint_root or f"{root}/checkpoints",
            python=spec.launch.python,
            files=tuple(
                f for f in reply.files if only is None or f.path.startswith(CHECKPOINTS) or only(f.path)
            ),
        )

    offers = connections.each(hosts, offer)
    sources = [value for value in offers.values() if isinstance(value, Source)]
    errors = [value for value in offers.values() if isinstance(value, LlmctlError)]
    if not sources:
        raise HostErrors(errors)
    by_host = {source.host.name: source for source in sources}

    def small(host: Host) -> PullResult:
        return _pull_small(connections, by_host[host.name], dest / host.name, progress)

    done = connections.each([source.host for source in sources], small)
    results = [value for value in done.values() if isinstance(value, PullResult)]
    errors += [value for value in done.values() if isinstance(value, LlmctlError)]
    names, more = _pull_checkpoints(connections, sources, dest / "checkpoints", checkpoints, progress)
    results += more
    return Pulled(
        files=sum(result.files for result in results),
        bytes=sum(result.bytes for result in results),
        checkpoints=tuple(names),
        errors=tuple(errors),
    )


def wanted_checkpoints(sources: Sequence[Source], which: str) -> dict[str, Source]:
    """Names of the checkpoints to pull, each with the first host that has it committed."""
    found: dict[str, Source] = {}
    for source in sources:
        for file in source.files:
            match = CHECKPOINT_MARKER.fullmatch(file.path)
            if match is not None:
                found.setdefault(match[1], source)
    if which == "none" or not found:
        return {}
    names = sorted(found) if which == "all" else [max(found)]
    return {name: found[name] for name in names}


def _pull_small(
    connections: Connections, source: Source, dest: Path, progress: Progress | None
) -> PullResult:
    items = []
    for file in source.files:
        if file.path.startswith(CHECKPOINTS):
            continue
        here = dest / file.path
        have = here.stat().st_size if here.is_file() else -1
        if not file.path.endswith(APPENDED):
            if have != file.size or here.stat().st_mtime_ns != file.mtime_ns:
                items.append(PullItem(path=file.path, size=file.size))
        elif have != file.size:
            offset = have if 0 < have < file.size else 0
            items.append(PullItem(path=file.path, size=file.size, offset=offset))
    dest.mkdir(parents=True, exist_ok=True)
    transport = connections.get(source.host.name)
    result = pull(
        transport,
        source.root,
        items,
        dest,
        python=source.python,
        or_python=source.host.python,
        progress=progress,
    )
    times = {file.path: file.mtime_ns for file in source.files}
    for item in items:  # the host's time, by which the next pull sees that nothing changed
        os.utime(dest / item.path, ns=(times[item.path], times[item.path]))
    return result


def _pull_checkpoints(
    connections: Connections,
    sources: Sequence[Source],
    dest: Path,
    which: str,
    progress: Progress | None,
) -> tuple[list[str], list[PullResult]]:
    names, results = [], []
    for name, source in wanted_checkpoints(sources, which).items():
        results.append(_pull_checkpoint(connections, source, name, dest, progress))
        names.append(name)
    return names, results


def _pull_checkpoint(
    connections: Connections,
    source: Source,
    name: str,
    dest: Path,
    progress: Progress | None,
) -> PullResult:
    """Fetch into `.part-<name>`, check, rename. What an earlier, broken pull left there is used again."""
    final, part = dest / name, dest / f".part-{name}"
    if (final / COMMIT_MARKER).is_file():
        return PullResult(files=0, bytes=0)
    part.mkdir(parents=True, exist_ok=True)
    transport = connections.get(source.host.name)
    root = f"{source.checkpoint_root}/{name}"
    marker = next(f for f in source.files if f.path == f"{CHECKPOINTS}{name}/{COMMIT_MARKER}")
    first = pull(
        transport,
        root,
        [PullItem(path=COMMIT_MARKER, size=marker.size)],
        part,
        python=source.python,
        or_python=source.host.python,
    )
    manifest = codec.loads(CheckpointManifest, (part / COMMIT_MARKER).read_bytes())
    missing = [entry for entry in manifest.files if not _is_whole(part / entry.path, entry)]
    items = [PullItem(path=e.path, size=e.size, sha256=e.sha256) for e in missing]
    rest = pull(
        transport, root, items, part, python=source.python, or_python=source.host.python, progress=progress
    )
    for entry in missing:
        if not _is_whole(part / entry.path, entry):
            (part / entry.path).unlink(missing_ok=True)
            raise IntegrityError(
                f"{name}/{entry.path} is not what its commit marker says",
                host=source.host.name,
                stage="pull",
                hint="the copy on the host is damaged; pull again, or take another checkpoint",
            )
    _rename(part, final)
    return PullResult(files=first.files + rest.files, bytes=first.bytes + rest.bytes)


def _is_whole(path: Path, entry: FileEntry) -> bool:
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256


def _rename(part: Path, final: Path) -> None:
    try:
        if final.exists():  # a folder without a marker: never a whole checkpoint
            shutil.rmtree(final)
        part.rename(final)
    except OSError as error:
        raise TransferError(f"{final}: {error.strerror}", stage="pull") from error
