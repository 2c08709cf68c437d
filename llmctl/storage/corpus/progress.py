"""How far the making of a data set is: what the callers of `shard` and `shard_tars` are told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far sharding is, what an earlier run did included.

    Attributes:
        bytes_done, bytes_total: of the input, as stored.
        tokens, documents: encoded so far; 0 for tars.
        shards: whole in the destination.
        skipped: binary files found in folders and left out, by this run.
    """

    bytes_done: int
    bytes_total: int
    tokens: int
    documents: int
    shards: int
    skipped: int
