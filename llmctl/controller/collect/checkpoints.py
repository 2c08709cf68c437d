"""Checkpoints that lie in the run directories of hosts, looked at without copying them here."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.config.types import Host
from llmctl.controller.transport.pool import Connections
from llmctl.controller.transport.pull import PullItem, pull
from llmctl.errors import HostErrors, LlmctlError
from llmctl.storage.checkpoints import Checkpoint, judged
from llmctl.storage.files import StoreFile
from llmctl.storage.uris import is_local
from llmctl.wire.layout import HostLayout
from llmctl.wire.manifests import COMMIT_MARKER
from llmctl.wire.records import NodeStatus

_IN_STEP = re.compile(r"checkpoints/(step-(\d{8}))/(.+)", re.S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A checkpoint and the hosts that have a whole copy of it."""

    checkpoint: Checkpoint
    hosts: tuple[str, ...]


def store_of(
    connections: Connections, hosts: Sequence[Host], archive: AgentArchive, run_id: str
) -> str | None:
    """The URI of the run's checkpoints where any machine can open it; None: folders on its hosts.

    Raises:
        HostErrors: no host could be asked.
    """
    answers = connections.each(hosts, lambda host: _node(connections, host, archive, run_id))
    nodes = [answer for answer in answers.values() if isinstance(answer, NodeStatus)]
    if not nodes:
        raise HostErrors([answer for answer in answers.values() if isinstance(answer, LlmctlError)])
    uri = nodes[0].spec.checkpoint_uri
    return None if uri is None or is_local(uri) else uri


def held_by_hosts(
    connections: Connections, hosts: Sequence[Host], archive: AgentArchive, run_id: str
) -> tuple[list[Held], list[LlmctlError]]:
    """Committed checkpoints in the hosts' folders, oldest first, and what went wrong on which host."""
    answers = connections.each(hosts, lambda host: _of_host(connections, host, archive, run_id))
    errors = [answer for answer in answers.values() if isinstance(answer, LlmctlError)]
    by_step: dict[int, Held] = {}
    for name, answer in answers.items():
        for one in [] if isinstance(answer, LlmctlError) else answer:
            known = by_step.get(one.step)
            others = known.hosts if known else ()
            by_step[one.step] = Held(checkpoint=known.checkpoint if known else one, hosts=(*others, name))
    return [by_step[step] for step in sorted(by_step)], errors


def _node(connections: Connections, host: Host, archive: AgentArchive, run_id: str) -> NodeStatus:
    return AgentClient(connections.get(host.name), host, archive).status(run_id).nodes[0]


def _of_host(connections: Connections, host: Host, archive: AgentArchive, run_id: str) -> list[Checkpoint]:
    """One host's checkpoints: names and sizes by the agent, markers fetched to a temporary place."""
    spec = _node(connections, host, archive, run_id).spec
    reply = AgentClient(connections.get(host.name), host, archive).files(run_id)
    root = reply.checkpoint_root or f"{HostLayout(spec.workdir).run(run_id).root}/checkpoints"
    folders: dict[str, list[StoreFile]] = {}
    for file in reply.files:
        if found := _IN_STEP.fullmatch(file.path):
            one = StoreFile(path=found[3], size=file.size, modified=file.mtime_ns / 1e9)
            folders.setdefault(found[1], []).append(one)
    markers = [
        PullItem(path=f"{folder}/{COMMIT_MARKER}", size=file.size)
        for folder, files in folders.items()
        for file in files
        if file.path == COMMIT_MARKER
    ]
    with tempfile.TemporaryDirectory(prefix="llmctl-markers-") as here:
        python, transport = spec.launch.python, connections.get(host.name)
        pull(transport, root, markers, Path(here), python=python, or_python=host.python)
        texts = {item.path: Path(here, item.path).read_bytes() for item in markers}
    return [
        judged(folder, int(folder.removeprefix("step-")), files, texts.get(f"{folder}/{COMMIT_MARKER}"))
        for folder, files in folders.items()
    ]
