"""A data set from this machine to a folder of every host: checked by its manifest, which arrives last.

The same relay as for environments: with `fan_out` it leaves here once and goes on from host to host, without
it every host gets it from here. What a host has already, whole, is not sent again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.config.types import Host
from llmctl.controller.execute.facts import facts_of, master_target
from llmctl.controller.execute.fanout import Delivered, Member, fan_out, peer_addresses
from llmctl.controller.execute.identity import Recogniser
from llmctl.controller.transport.pool import Connections
from llmctl.errors import IntegrityError, LlmctlError
from llmctl.storage.corpus.dataset import files_of, read_dataset
from llmctl.storage.files import open_store
from llmctl.wire.environments import Blob
from llmctl.wire.manifests import SHARD_MANIFEST

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A data set that is to travel.

    Attributes:
        blobs: each content once, the manifest last. places: paths in the data set, by hash.
        bytes: of all files, equal ones counted each.
    """

    folder: Path
    blobs: tuple[Blob, ...]
    places: dict[str, tuple[str, ...]]
    bytes: int

    def path(self, blob: Blob) -> Path:
        """Where that content lies here."""
        return self.folder / self.places[blob.sha256][0]

    @property
    def files(self) -> int:
        return sum(len(paths) for paths in self.places.values())


def parcel_of(folder: Path) -> Parcel:
    """What the manifest in `folder` lists, and itself.

    Raises:
        NotFoundError: no data set is there. IntegrityError: a file of it is missing or has another size.
    """
    manifest = folder / SHARD_MANIFEST
    listed = files_of(read_dataset(open_store(str(folder))))
    places: dict[str, tuple[str, ...]] = {}
    blobs: dict[str, Blob] = {}
    for entry in listed:
        _same_size(folder / entry.path, entry.size)
        places[entry.sha256] = (*places.get(entry.sha256, ()), entry.path)
        blobs[entry.sha256] = Blob(sha256=entry.sha256, size=entry.size, name=Path(entry.path).name)
    text = manifest.read_bytes()
    last = Blob(sha256=hashlib.sha256(text).hexdigest(), size=len(text), name=SHARD_MANIFEST)
    return Parcel(
        folder=folder,
        blobs=(*blobs.values(), last),
        places={**places, last.sha256: (SHARD_MANIFEST,)},
        bytes=sum(entry.size for entry in listed) + len(text),
    )


def send(
    parcel: Parcel,
    dest: str,
    hosts: Sequence[Host],
    connections: Connections,
    archive: AgentArchive,
    recogniser: Recogniser,
    *,
    by_tree: bool,
    progress: Progress,
) -> dict[str, Delivered | LlmctlError]:
    """Every host has it at `dest` (absolute, or below `~/`) afterwards, every byte checked."""

    def look(host: Host) -> Member:
        facts = facts_of(host, connections, target=master_target(hosts[0]))
        recogniser.check(host, facts.more, connections)
        return Member(host=host, folder=dest, addresses=peer_addresses(host, facts))

    def hand(members: Sequence[Member]) -> dict[str, Delivered | LlmctlError]:
        return fan_out(
            members,
            parcel.blobs,
            parcel.path,
            connections,
            archive,
            places=parcel.places,
            progress=progress,
        )

    looked = connections.each(hosts, look)
    members = {name: one for name, one in looked.items() if isinstance(one, Member)}
    results: dict[str, Delivered | LlmctlError] = {
        name: one for name, one in looked.items() if isinstance(one, LlmctlError)
    }
    if by_tree:
        results.update(hand(list(members.values())) if members else {})
    else:
        there = [member.host for member in members.values()]
        results.update(connections.each(there, lambda host: _one(hand([members[host.name]]), host.name)))
    return {host.name: results[host.name] for host in hosts}


def _one(results: dict[str, Delivered | LlmctlError], name: str) -> Delivered:
    found = results[name]
    if isinstance(found, LlmctlError):
        raise found
    return found


def _same_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise IntegrityError(f"{path}: {error.strerror}", hint=f"llmctl data verify {path.parent}") from None
    if found != size:
        raise IntegrityError(
            f"{path} has {found} bytes, its manifest says {size}", hint=f"llmctl data verify {path.parent}"
        )
