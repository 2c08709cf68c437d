"""consumed-<rank>.jsonl: which samples a rank trained on, as it read them; the proof of `llmctl data audit`.

A header, then one line per stretch of steps, then, where training ended in order, an end line. A line holds
the samples exactly and still needs no room for them: what came as manifest and seed foretell is left out, any
other step is written out sample by sample (`odd`), and a digest of what was really read covers both. So the
journal of a million steps stays small, and the audit, which foretells for itself, can't be talked into
anything.

Every line carries its own CRC-32; one that a killed process left unfinished has no line end and is left out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Optional, Union

from llmctl.errors import IntegrityError
from llmctl.wire.codec import dumps, loads
from llmctl.wire.manifests import ShardManifest
from llmctl.wire.specs import Peer

HEADER = "header"
STEPS = "steps"
END = "end"

_CRC = ',"crc":"'
_TAIL = len(_CRC) + 8 + len('"}')


@dataclass(frozen=True)
class CorpusMark:
    """A corpus as it was at the start of the attempt.

    Attributes:
        weight: its part of a mixture.
        fingerprint: of the names, lengths and hashes of its shards, in order.
        lengths: tokens of each shard, packed; see `shard_tokens`.
    """

    uri: str
    weight: float
    fingerprint: str
    lengths: str


@dataclass(frozen=True)
class Origin:
    """Who wrote the checkpoint that an attempt went on from."""

    run_id: str
    attempt: int


@dataclass(frozen=True)
class JournalHeader:
    """Everything that decides which samples a step takes, and whose journal this is.

    Attributes:
        start: the first step, from 0: as many as the checkpoint had done that this attempt began with.
        origin: of that checkpoint; None where there was none.
        peers: all hosts of the attempt, so that a journal that is missing has a name.
        shares: samples of each rank in a step; none: equal ones.
    """

    run_id: str
    attempt: int
    host: str
    rank: int
    world: int
    start: int
    seed: int
    sequence_length: int
    global_batch: int
    corpora: tuple[CorpusMark, ...]
    peers: tuple[Peer, ...] = ()
    origin: Optional[Origin] = None
    shares: tuple[int, ...] = ()
    kind: str = HEADER


@dataclass(frozen=True)
class OddStep:
    """A step whose samples are not those foretold: (shard, start, corpus) of each, as they were read."""

    step: int
    refs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class StepsLine:
    """Steps `start` to `end` (without it) were carried out with `samples` samples of this rank.

    Attributes:
        digest: `RefDigest` over all of them.
    """

    start: int
    end: int
    samples: int
    digest: str
    odd: tuple[OddStep, ...] = ()
    kind: str = STEPS


@dataclass(frozen=True)
class EndLine:
    """Training ended in order, with `step` steps done."""

    step: int
    kind: str = END


Line = Union[JournalHeader, StepsLine, EndLine]
_KINDS: dict[str, type[Line]] = {HEADER: JournalHeader, STEPS: StepsLine, END: EndLine}


@dataclass(frozen=True)
class Journal:
    """One rank's journal as it was found; `damaged` are the numbers, from 1, of lines that were changed."""

    header: Optional[JournalHeader]
    steps: tuple[StepsLine, ...]
    ended: Optional[int] = None
    damaged: tuple[int, ...] = ()


class RefDigest:
    """A digest of samples in the order in which they were read."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, step: int, refs: Sequence[tuple[int, ...]]) -> None:
        """One step's samples, each (shard, start, corpus)."""
        numbers = [number for ref in refs for number in ref]
        self._hash.update(struct.pack(f"<{2 + len(numbers)}Q", step, len(refs), *numbers))

    def value(self) -> str:
        """32 hex digits."""
        return self._hash.hexdigest()


def fingerprint(manifest: ShardManifest) -> str:
    """What must be the same of a corpus for its samples to be the same."""
    parts = [f"{shard.name} {shard.tokens} {shard.bin.sha256}\n" for shard in manifest.shards]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def pack_lengths(tokens: Iterable[int]) -> str:
    """Shard lengths as text; those of equal shards need next to nothing."""
    return base64.b64encode(zlib.compress(json.dumps(list(tokens)).encode(), 9)).decode()


def shard_tokens(mark: CorpusMark) -> list[int]:
    """The lengths that `pack_lengths` packed. Raises IntegrityError."""
    try:
        found = json.loads(zlib.decompress(base64.b64decode(mark.lengths)))
    except (ValueError, zlib.error) as error:
        raise IntegrityError(f"a journal's shard lengths can't be read: {error}") from None
    return [int(tokens) for tokens in found]


def seal(line: Line) -> bytes:
    """One line of the file, CRC and line end included."""
    text = dumps(line)
    return f'{text[:-1]}{_CRC}{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def unseal(line: bytes) -> Optional[Line]:
    """What `seal` wrote; None for a kind of line that only a newer version knows.

    Raises:
        IntegrityError: the line is not as it was written.
    """
    body, tail = line[:-_TAIL] + b"}", line[-_TAIL:]
    if tail != f'{_CRC}{zlib.crc32(body):08x}"}}'.encode():
        raise IntegrityError("a journal's line is not as it was written")
    kind = _KINDS.get(json.loads(body).get("kind"))
    return None if kind is None else loads(kind, body)


def read_journal(content: bytes) -> Journal:
    """A journal out of its file's bytes, whatever became of them."""
    header, ended = None, None
    steps: list[StepsLine] = []
    damaged: list[int] = []
    whole, _, _torn = content.rpartition(b"\n")
    for number, text in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            line = unseal(text)
        except IntegrityError:
            damaged.append(number)
            continue
        if isinstance(line, JournalHeader):
            header = header or line
        elif isinstance(line, StepsLine):
            steps.append(line)
        elif isinstance(line, EndLine):
            ended = line.step
    return Journal(header=header, steps=tuple(steps), ended=ended, damaged=tuple(damaged))
