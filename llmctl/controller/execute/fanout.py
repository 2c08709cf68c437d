"""Files to many hosts, sent once: to one host from here, from there host to host while they still come.

A tree of WIDTH: each host hands on to at most that many, so that no link carries the files more often. It
is started from the root down, each host told by SSH where its parent listens and the token to show. What
fails in the tree (no way between two hosts, a host that dies) is sent from here as without it.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.backends.talk import EndedError, Talk
from llmctl.controller.config.types import Host
from llmctl.controller.plan.fanout import Branch, tree
from llmctl.controller.transport.pool import Connections
from llmctl.errors import LlmctlError, RemoteCommandError, TransferError
from llmctl.wire.environments import Blob, RelayHello, RelayReply, RelayRequest, RelayWanted

STAGE = "fan-out"
DEADLINE_S = 4 * 3600.0
HELLO_S = 60.0
STALL_S = 60.0
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One host that is to have the files.

    Attributes:
        folder: absolute path there; each file goes to `<sha256>/<name>` in it.
        addresses: how peers may reach it, in order of trial.
    """

    host: Host
    folder: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """How the files came to one host: bytes, and from which host (None: from here)."""

    bytes: int
    source: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Relay:
    """One that runs: `wanted` are the files that are missing there, in the order in which they come."""

    client: AgentClient
    talk: Talk
    port: int
    wanted: tuple[Blob, ...]


def fan_out(
    members: Sequence[Member],
    blobs: Sequence[Blob],
    content: Callable[[Blob], Path],
    connections: Connections,
    archive: AgentArchive,
) -> dict[str, Delivered | LlmctlError]:
    """Every host has every file afterwards, checked by hash; one result each, in the members' order.

    Args:
        content: where a file lies here.
    """
    transfer = _Transfer(blobs, content, connections, archive)
    branches = tree([member.host.name for member in members])
    results = transfer.run({member.host.name: member for member in members}, branches)
    for member in members:
        if isinstance(results[member.host.name], LlmctlError):
            alone = [Branch(name=member.host.name, parent=None, children=0)]
            again = _Transfer(blobs, content, connections, archive)
            results.update(again.run({member.host.name: member}, alone))
    return {member.host.name: results[member.host.name] for member in members}


class _Transfer:
    """One tree, from its start to its end."""

    def __init__(
        self,
        blobs: Sequence[Blob],
        content: Callable[[Blob], Path],
        connections: Connections,
        archive: AgentArchive,
    ) -> None:
        self._blobs = tuple(blobs)
        self._content = content
        self._connections = connections
        self._archive = archive
        self._token = secrets.token_hex(16)
        self._relays: dict[str, _Relay] = {}

    def run(
        self, members: Mapping[str, Member], branches: Sequence[Branch]
    ) -> dict[str, Delivered | LlmctlError]:
        failed: dict[str, LlmctlError] = {}
        try:
            for branch in branches:
                try:
                    self._relays[branch.name] = self._start(members, branch)
                except LlmctlError as error:
                    error.host = error.host or branch.name
                    failed[branch.name] = error
            running = [branch for branch in branches if branch.name in self._relays]
            with ThreadPoolExecutor(max(1, len(running)), thread_name_prefix="fan-out") as threads:
                done = threads.map(self._finish, running)
                return {**failed, **{branch.name: one for branch, one in zip(running, done, strict=True)}}
        finally:
            for relay in self._relays.values():
                relay.talk.close()

    def _start(self, members: Mapping[str, Member], branch: Branch) -> _Relay:
        member = members[branch.name]
        parent = self._relays.get(branch.parent or "")
        if branch.parent and parent is None:
            raise TransferError(f"{branch.parent}, which was to hand it on, failed", stage=STAGE)
        client = AgentClient(self._connections.get(branch.name), member.host, self._archive)
        talk, hello = client.converse(["relay"], RelayHello, stage=STAGE, deadline_s=HELLO_S)
        try:
            talk.say(
                RelayRequest(
                    token=self._token,
                    blobs=self._blobs,
                    folder=member.folder,
                    sources=members[branch.parent].addresses if branch.parent else (),
                    port=parent.port if parent else 0,
                    children=branch.children,
                )
            )
            told = talk.hear(RelayWanted, deadline_s=HELLO_S)
        except EndedError as ended:
            talk.close()
            raise client.ended(ended, STAGE) from None
        except BaseException:
            talk.close()
            raise
        missing = set(told.missing)
        wanted = tuple(blob for blob in self._blobs if blob.sha256 in missing)
        return _Relay(client=client, talk=talk, port=hello.port, wanted=wanted)

    def _finish(self, branch: Branch) -> Delivered | LlmctlError:
        """Feed it if it is the root, and wait until it has everything."""
        relay = self._relays[branch.name]
        try:
            if branch.parent is None:
                self._feed(relay)
            reply = relay.talk.hear(RelayReply, deadline_s=DEADLINE_S)
            return Delivered(bytes=reply.bytes, source=branch.parent)
        except EndedError as ended:
            return relay.client.ended(ended, STAGE)
        except LlmctlError as error:
            error.host = error.host or branch.name
            return error

    def _feed(self, relay: _Relay) -> None:
        """A relay that ended says why where its answer is awaited."""
        with contextlib.suppress(RemoteCommandError):
            for blob in relay.wanted:
                with self._content(blob).open("rb", buffering=0) as file:
                    while data := file.read(_BLOCK):
                        relay.talk.send(data, deadline_s=STALL_S)
