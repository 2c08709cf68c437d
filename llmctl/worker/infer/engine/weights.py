"""One rank's share of a model, read tensor by tensor: q, k, v fused to one matrix, gate and up to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmctl.wire.model import ModelConfig
from llmctl.worker.hf.folder import shapes
from llmctl.worker.hf.names import EMBED, HEAD
from llmctl.worker.hf.weights import Weights
from llmctl.worker.infer.engine.place import Place, Portion, portion

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(slots=True, kw_only=True)
class LayerWeights:
    """One layer; H query heads, G key-value heads and F columns are this rank's own.

    Attributes:
        qkv: [(H + 2 G) * head_dim, dim]; `qkv_bias`, both q_norm and k_norm and `out_bias` may be absent.
        out: [dim, H * head_dim]; `out_bias` is held by the first tp rank only, for it is added once.
        gate_up: [2 F, dim], gate first; `down`: [dim, F].
    """

    attention_norm: Tensor
    ffn_norm: Tensor
    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    qkv_bias: Tensor | None = None
    out_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


@dataclass(slots=True, kw_only=True)
class StageWeights:
    """What a rank holds.

    Attributes:
        layers: this stage's, in order.
        embed: [vocab share, dim]; on the first stage, and on the last where it is the head, too.
        norm, head: on the last stage.
    """

    config: ModelConfig
    place: Place
    portion: Portion
    layers: list[LayerWeights] = field(default_factory=list)
    embed: Tensor | None = None
    norm: Tensor | None = None
    head: Tensor | None = None

    @property
    def kv_heads(self) -> int:
        return self.portion.kv_heads[1] - self.portion.kv_heads[0]

    @property
    def heads(self) -> int:
        return self.kv_heads * (self.config.heads // self.config.kv_heads)


def load_stage(weights: Weights, place: Place, dtype: torch.dtype, device: torch.device) -> StageWeights:
    """This rank's share of the model; norms and biases stay in fp32.

    Raises:
        ConfigError: it can't be shared that way. IntegrityError: the files are not what they should be.
    """
    config = weights.config
    mine = StageWeights(config=config, place=place, portion=portion(config, place))
    targets = _targets(mine, dtype, device)
    for name, whole in weights.items(list(targets)):
        targets[name](whole)
    return mine


_Give = Callable[[Tensor], object]


def _targets(mine: StageWeights, dtype: torch.dtype, device: torch.device) -> dict[str, _Give]:
    """What to do with each tensor of the model that this rank needs, by its name."""
    config, place = mine.config, mine.place
    found: dict[str, _Give] = {}
    for index in range(*mine.portion.layers):
        layer = _empty_layer(mine, dtype, device)
        mine.layers.append(layer)
        found |= {f"layers.{index}.{name}": give for name, give in _layer_targets(mine, layer).items()}
    found = {name: give for name, give in found.items() if name in shapes(config)}
    first, stop = mine.portion.vocab
    tied_head = place.is_last and config.tied_head
    if place.is_first or tied_head:
        mine.embed = torch.empty(stop - first, config.dim, dtype=dtype, device=device)
        found[EMBED] = _rows(mine.embed, first, stop)
    if place.is_last:
        mine.norm = torch.empty(config.dim, device=device)
        found["norm.weight"] = mine.norm.copy_
        if not config.tied_head:
            mine.head = torch.empty(stop - first, config.dim, dtype=dtype, device=device)
            found[HEAD] = _rows(mine.head, first, stop)
        else:
            mine.head = mine.embed
    return found


def _empty_layer(mine: StageWeights, dtype: torch.dtype, device: torch.device) -> LayerWeights:
    config, ffn = mine.config, mine.portion.ffn[1] - mine.portion.ffn[0]
    fused = (mine.heads + 2 * mine.kv_heads) * config.head_dim

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.empty(rows, columns, dtype=dtype, device=device)

    def vector(size: int, has: bool = True) -> Tensor | None:
        return torch.empty(size, device=device) if has else None

    norm = torch.empty(2, config.dim, device=device)
    return LayerWeights(
        attention_norm=norm[0],
        ffn_norm=norm[1],
        qkv=matrix(fused, config.dim),
        out=matrix(config.dim, mine.heads * config.head_dim),
        gate_up=matrix(2 * ffn, config.dim),
        down=matrix(config.dim, ffn),
        qkv_bias=vector(fused, config.qkv_bias),
        out_bias=vector(config.dim, config.out_bias and mine.place.shard == 0),
        q_norm=vector(config.head_dim, config.qk_norm),
        k_norm=vector(config.head_dim, config.qk_norm),
    )


def _layer_targets(mine: StageWeights, layer: LayerWeights) -> dict[str, _Give]:
    config, size = mine.config, mine.config.head_dim
    per_kv = config.heads // config.kv_heads
    kv = (mine.portion.kv_heads[0] * size, mine.portion.kv_heads[1] * size)
    q = (kv[0] * per_kv, kv[1] * per_kv)
    ffn = mine.portion.ffn
    q_end, k_end = q[1] - q[0], q[1] - q[0] + kv[1] - kv[0]
    parts = {"q": (slice(0, q_end), q), "k": (slice(q_end, k_end), kv), "v": (slice(k_end, None), kv)}
    width = ffn[1] - ffn[0]
    found: dict[str, _Give] = {
        "attention_norm.weight": layer.attention_norm.copy_,
        "ffn_norm.weight": layer.ffn_norm.copy_,
        "attention.out.weight": lambda whole: layer.out.copy_(whole[:, q[0] : q[1]]),
        "ffn.gate.weight": _rows(layer.gate_up[:width], *ffn),
        "ffn.up.weight": _rows(layer.gate_up[width:], *ffn),
        "ffn.down.weight": lambda whole: layer.down.copy_(whole[:, ffn[0] : ffn[1]]),
    }
    for name, (where, rows) in parts.items():
        found[f"attention.{name}.weight"] = _rows(layer.qkv[where], *rows)
        if layer.qkv_bias is not None:
            found[f"attention.{name}.bias"] = _rows(layer.qkv_bias[where], *rows)
    if layer.out_bias is not None:
        found["attention.out.bias"] = layer.out_bias.copy_
    if layer.q_norm is not None and layer.k_norm is not None:
        found["attention.q_norm.weight"] = layer.q_norm.copy_
        found["attention.k_norm.weight"] = layer.k_norm.copy_
    return found


def _rows(target: Tensor, first: int, stop: int) -> _Give:
    return lambda whole: target.copy_(whole[first:stop])
