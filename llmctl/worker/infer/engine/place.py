"""Where one rank stands in a replica, and which part of the model is its own. Pure arithmetic.

Unlike in training, shares need not be equal: SmolLM2's 3 key-value heads go to 2 tp ranks as 2 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.errors import ConfigError
from llmctl.wire.model import ModelConfig
from llmctl.wire.stages import pipeline_cuts

DECODE_LENGTH = 512
"""Context that the cut of the pipeline assumes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Rank `rank` = stage * tp + shard of a replica of tp x pp ranks."""

    rank: int = 0
    tp: int = 1
    pp: int = 1

    @property
    def stage(self) -> int:
        return self.rank // self.tp

    @property
    def shard(self) -> int:
        return self.rank % self.tp

    @property
    def is_first(self) -> bool:
        """Its stage begins with tokens."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Its stage ends with logits."""
        return self.stage == self.pp - 1

    @property
    def world(self) -> int:
        return self.tp * self.pp

    def stage_ranks(self, stage: int) -> list[int]:
        """Ranks that share the matrices of a stage."""
        return list(range(stage * self.tp, (stage + 1) * self.tp))


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """What of a model one rank holds: layers, key-value heads, columns of the feed-forward layer, and rows of
    the vocabulary, each as (first, stop)."""

    layers: tuple[int, int]
    kv_heads: tuple[int, int]
    ffn: tuple[int, int]
    vocab: tuple[int, int]


def portion(config: ModelConfig, place: Place) -> Portion:
    """This rank's.

    Raises:
        ConfigError: there are more ranks than heads or layers to share.
    """
    if place.tp > config.kv_heads:
        raise ConfigError(
            f"tp {place.tp}: the model has {config.kv_heads} key-value heads to share",
            hint="use pipeline stages (pp) or replicas instead",
            stage="model",
        )
    if place.pp > config.layers:
        raise ConfigError(f"pp {place.pp}: the model has {config.layers} layers", stage="model")
    return Portion(
        layers=pipeline_cuts(config, place.pp, DECODE_LENGTH)[place.stage],
        kv_heads=share(config.kv_heads, place),
        ffn=share(config.ffn_dim, place),
        vocab=vocab_share(config.vocab_size, place.tp, place.shard),
    )


def share(total: int, place: Place) -> tuple[int, int]:
    """(first, stop) of this rank's share of `total` things; shares differ by one at most."""
    base, more = divmod(total, place.tp)
    first = place.shard * base + min(place.shard, more)
    return first, first + base + (place.shard < more)


def vocab_share(total: int, tp: int, shard: int) -> tuple[int, int]:
    """Equal shares, the last ones shorter: so they can be gathered into one tensor and cut off at its end."""
    width = -(-total // tp)
    return min(shard * width, total), min((shard + 1) * width, total)
