"""Files to many hosts, sent once: to one host from here, from there host to host while they still come.

A tree: each host hands on to a few, so that no link carries the files more often. Every host is told by SSH
where its parent listens and the token to show. What fails in the tree (no way between two hosts, a host that
dies) is sent from here as without it.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.backends.talk import EndedError, Talk
from llmctl.controller.config.types import Host
from llmctl.controller.plan.fanout import Branch, tree
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.transport.pool import Connections
from llmctl.errors import LlmctlError, RemoteCommandError, TransferError
from llmctl.wire.environments import Blob, RelayHello, RelayReply, RelayRequest, RelayWanted

STAGE = "fan-out"
DEADLINE_S = 4 * 3600.0
HELLO_S = 60.0
STALL_S = 60.0
_BLOCK = 1 << 20

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One host that is to have the files.

    Attributes:
        folder: absolute path there; each file goes to `<sha256>/<name>` in it, or where `places` says.
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
    *,
    places: Mapping[str, tuple[str, ...]] | None = None,
    progress: Progress = lambda _count: None,
) -> dict[str, Delivered | LlmctlError]:
    """Every host has every file afterwards, checked by hash; one result each, in the members' order.

    Args:
        content: where a file lies here.
        places: paths below the members' folders, by hash; then the last of `blobs` is their manifest.
        progress: told of bytes that left here.
    """

    def transfer() -> _Transfer:
        return _Transfer(blobs, content, connections, archive, places or {}, progress)

    tree = transfer()
    results = tree.run(members)
    for member in members:
        failed = results[member.host.name]
        if len(members) > 1 and isinstance(failed, LlmctlError) and member.host.name in tree.opened:
            results.update(transfer().run([member]))
    return results


def peer_addresses(host: Host, facts: HostFacts) -> tuple[str, ...]:
    """Its peers' ways to a host: what hosts.yaml says, the address that we use, then its own interfaces'."""
    own = [one.ip for one in facts.python.addresses] if facts.python else []
    found = [host.internal_addr, facts.reached_by, *own]
    addresses = tuple(dict.fromkeys(ip for ip in found if ip and not ip.startswith("127.")))
    return addresses or ("127.0.0.1",)


class _Transfer:
    """One tree, from its start to its end. `opened`: the hosts that could be spoken to."""

    def __init__(
        self,
        blobs: Sequence[Blob],
        content: Callable[[Blob], Path],
        connections: Connections,
        archive: AgentArchive,
        places: Mapping[str, tuple[str, ...]],
        progress: Progress,
    ) -> None:
        self._places = dict(places)
        self._progress = progress
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
                    places=self._places,
                )
            )
            # With places it reads what is there, to compare it.
            wanted = relay.talk.hear(RelayWanted, deadline_s=DEADLINE_S if self._places else HELLO_S)
            missing = [blob for blob in self._blobs if blob.sha256 in set(wanted.missing)]
            _refuse_full(missing, wanted, relay.member)
            if parent is None:
                self._feed(relay.talk, missing)
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
                        self._progress(len(data))


def _refuse_full(missing: Sequence[Blob], wanted: RelayWanted, member: Member) -> None:
    needed = sum(blob.size for blob in missing)
    if needed > wanted.free:
        raise TransferError(
            f"{needed / 1e6:.0f} MB are to come, {wanted.free / 1e6:.0f} MB are free in {member.folder}",
            host=member.host.name,
            stage=STAGE,
            hint=f"make room: llmctl hosts clean --limit {member.host.name}",
        )
