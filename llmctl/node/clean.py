"""`clean`: remove from a workdir what no run needs any more. A run that goes on is never touched.

What a run was started with (its code tree, its agent archive) stays as long as the run's directory is
younger than asked for, so that a run that is just being started finds what was pushed for it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from llmctl.errors import IntegrityError
from llmctl.node import rundir
from llmctl.wire.environments import READY
from llmctl.wire.layout import RUN_ID, SUPERVISOR_LOCK, TREE_HASH, HostLayout
from llmctl.wire.records import CleanedItem, CleanReport, CleanRequest

_DOOMED = ".doomed-"
_GROWING = ".new-"
"""A tree that is being pushed; a push sweeps up after those that died."""

_GRACE_S = 900.0
_STARTING_S = 86400.0


@dataclass(frozen=True)
class _Run:
    """One run directory: `used` is the last time that anything of it changed, Unix time.

    `known`: its node.json could be read.
    """

    name: str
    path: str
    live: bool
    used: float
    known: bool
    tree: Optional[str]
    agent: str
    env: str = ""


def clean(workdir: str, request: CleanRequest) -> CleanReport:
    """Remove old code trees, agent archives, cached shards and, if asked, ended runs. Raises OSError."""
    host = rundir.host_layout(workdir)
    now = time.time()
    runs = list(_runs(host, now))
    gone = [run for run in runs if request.runs and not run.live and now - run.used >= request.older_than_s]
    kept = [run for run in runs if run not in gone]
    work = _Work(now, request)
    for run in gone:
        work.consider("run", run.path, run.used)
    if all(run.known for run in kept):  # one that can't be read could be using anything
        _pushed(host, kept, work, now)
    for path in _below(host.supervisors):
        if not _locked(os.path.join(path, SUPERVISOR_LOCK)):
            work.consider("supervisor", path, _newest(path), at_least=_GRACE_S)
    if not any(run.live for run in runs):
        for path in _below(host.cache):
            work.consider("cache", path, _newest(path))
    live = tuple(run.name for run in runs if run.live)
    return CleanReport(items=tuple(work.items), live=live, failed=tuple(work.failed))


def _pushed(host: HostLayout, kept: list[_Run], work: _Work, now: float) -> None:
    """Code trees and agents that no run needs; what was pushed just now waits for its run to start."""
    young = [run for run in kept if run.live or now - run.used < work.request.older_than_s]
    trees, agents = {run.tree for run in young}, {run.agent for run in young} | {work.request.keep_agent}
    for path in _below(host.code):
        name = os.path.basename(path)
        if name not in trees and not name.startswith(_GROWING):
            work.consider("code", path, _touched(path), at_least=_GRACE_S)
    for path in _below(host.agents):
        if os.path.basename(path).split(".")[0] not in agents:
            work.consider("agent", path, _touched(path), at_least=_GRACE_S)
    environments = {run.env for run in young}
    for path in _below(host.envs):
        name = os.path.basename(path)
        if TREE_HASH.match(name) and name not in environments:
            work.consider("env", path, _touched(os.path.join(path, READY)), at_least=_GRACE_S)
    for path in _below(host.wheels):
        work.consider("wheel", path, _newest(path), at_least=_GRACE_S)


def _locked(path: str) -> bool:
    """Whether a process holds the lock in `path`. Raises OSError where it can't be asked."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _env_of(python: str) -> str:
    """The hash of the environment that an interpreter is of; empty where it is the host's own."""
    folder = os.path.dirname(os.path.dirname(python))
    return os.path.basename(folder) if os.path.basename(os.path.dirname(folder)) == "env" else ""


class _Work:
    """Removes, or only lists, what is old enough."""

    def __init__(self, now: float, request: CleanRequest) -> None:
        self._now = now
        self.request = request
        self.items: list[CleanedItem] = []
        self.failed: list[str] = []

    def consider(self, kind: str, path: str, used: float, *, at_least: float = 0.0) -> None:
        age = max(0.0, self._now - used)
        if age < max(self.request.older_than_s, at_least):
            return
        item = CleanedItem(kind=kind, name=os.path.basename(path), bytes=_size(path), age_s=age)
        try:
            if not self.request.dry_run:
                _remove(path)
            self.items.append(item)
        except OSError as error:
            self.failed.append(f"{path}: {error.strerror or error}")


def _remove(path: str) -> None:
    """Out of sight by one rename first: nobody ever finds half a tree under its name."""
    parent, name = os.path.split(path)
    doomed = path if name.startswith(_DOOMED) else os.path.join(parent, f"{_DOOMED}{os.getpid()}-{name}")
    if doomed != path:
        os.rename(path, doomed)
    if os.path.isdir(doomed) and not os.path.islink(doomed):
        for root, folders, _ in os.walk(doomed):  # a pushed tree may have folders without the write bit
            for folder in folders:
                _unlock(os.path.join(root, folder))
        shutil.rmtree(doomed)
    else:
        os.unlink(doomed)


def _unlock(folder: str) -> None:
    if not os.path.islink(folder):
        os.chmod(folder, 0o700)


def _runs(host: HostLayout, now: float) -> Iterator[_Run]:
    for path in _below(host.runs):
        name = os.path.basename(path)
        if not RUN_ID.match(name):
            continue
        run = host.run(name)
        try:
            view = rundir.look(run)
        except (IntegrityError, OSError):
            view = None
        used = max(_touched(path), _touched(run.lease), _touched(run.events), _touched(run.node_spec))
        if view is None:  # being started, or damaged: it is not ours to say that it is over
            live = now - used < _STARTING_S
            yield _Run(name=name, path=path, live=live, used=used, known=not live, tree=None, agent="")
        else:
            live = view.agent_alive or not (view.recorded or view.state.ended)
            tree, agent, env = view.spec.tree, view.spec.agent, _env_of(view.spec.launch.python)
            yield _Run(
                name=name, path=path, live=live, used=used, known=True, tree=tree, agent=agent, env=env
            )


def _below(folder: str) -> list[str]:
    try:
        return sorted(os.path.join(folder, name) for name in os.listdir(folder))
    except OSError:
        return []


def _touched(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _newest(path: str) -> float:
    """The last change anywhere below `path`: a folder's own time does not tell of its files."""
    newest = _touched(path)
    for root, _, names in os.walk(path):
        newest = max(newest, _touched(root), *(_touched(os.path.join(root, name)) for name in names), 0.0)
    return newest


def _size(path: str) -> int:
    """Bytes on the disk."""
    total = _blocks(path)
    for root, folders, names in os.walk(path):
        total += sum(_blocks(os.path.join(root, name)) for name in (*folders, *names))
    return total


def _blocks(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0
