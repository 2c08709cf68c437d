"""Files to many hosts, sent once: to one host from here, from there host to host while they still come.

A tree: each host hands on to a few, so that no link carries the files more often. Every host is told by SSH
where its parent listens and the token to show. What fails in the tree (no way between two hosts, a host that
dies) is sent from here as without it.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.backends.talk import EndedError, Talk
from llmctl.controller.config.types import Host
from llmctl.controller.plan.fanout import Branch, tree
from llmctl.controller.transport.pool import Connections
from llmctl.errors import LlmctlError, RemoteCommandError
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
    """One that runs and listens."""

    member: Member
    client: AgentClient
    talk: Talk
    port: int


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
    results = transfer.run(members)
    for member in members:
        failed = results[member.host.name]
        if len(members) > 1 and isinstance(failed, LlmctlError) and member.host.name in transfer.opened:
            results.update(_Transfer(blobs, content, connections, archive).run([member]))
    return results


class _Transfer:
    """One tree, from its start to its end. `opened`: the hosts that could be spoken to."""

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
        self.opened: dict[str, _Relay] = {}

    def run(self, members: Sequence[Member]) -> dict[str, Delivered | LlmctlError]:
        """Start every relay at once, so that all listen; then tell each whose child it is."""
        by_name = {member.host.name: member for member in members}
        hosts = [member.host for member in members]
        relays = self._connections.each(hosts, lambda host: self._open(by_name[host.name]))
        self.opened = {name: relay for name, relay in relays.items() if isinstance(relay, _Relay)}
        branches = {branch.name: branch for branch in tree(list(self.opened))}
        try:
            told = [by_name[name].host for name in branches]
            done = self._connections.each(told, lambda host: self._deliver(branches[host.name]))
        finally:
            for relay in self.opened.values():
                relay.talk.close()
        failed = {name: relay for name, relay in relays.items() if isinstance(relay, LlmctlError)}
        return {name: failed.get(name) or done[name] for name in by_name}

    def _open(self, member: Member) -> _Relay:
        client = AgentClient(self._connections.get(member.host.name), member.host, self._archive)
        talk, hello = client.converse(["relay"], RelayHello, stage=STAGE, deadline_s=HELLO_S)
        return _Relay(member=member, client=client, talk=talk, port=hello.port)

    def _deliver(self, branch: Branch) -> Delivered:
        """Say what to get from where, feed it if it is the root, and wait until it has everything."""
        relay = self.opened[branch.name]
        parent = self.opened[branch.parent] if branch.parent else None
        try:
            relay.talk.say(
                RelayRequest(
                    token=self._token,
                    blobs=self._blobs,
                    folder=relay.member.folder,
                    sources=parent.member.addresses if parent else (),
                    port=parent.port if parent else 0,
                    children=branch.children,
                )
            )
            missing = set(relay.talk.hear(RelayWanted, deadline_s=HELLO_S).missing)
            if parent is None:
                self._feed(relay.talk, [blob for blob in self._blobs if blob.sha256 in missing])
            reply = relay.talk.hear(RelayReply, deadline_s=DEADLINE_S)
            return Delivered(bytes=reply.bytes, source=branch.parent)
        except EndedError as ended:
            raise relay.client.ended(ended, STAGE) from None

    def _feed(self, talk: Talk, wanted: Sequence[Blob]) -> None:
        """A relay that ended says why where its answer is awaited."""
        with contextlib.suppress(RemoteCommandError):
            for blob in wanted:
                with self._content(blob).open("rb", buffering=0) as file:
                    while data := file.read(_BLOCK):
                        talk.send(data, deadline_s=STALL_S)
