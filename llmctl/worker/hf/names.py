"""Our parameter names and those of Llama-family checkpoints, one for one; no tensor is changed on the way.

Both sides rotate pairs (i, i + head_dim / 2), so that queries and keys need no permutation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

EMBED = "embed.weight"
HEAD = "head.weight"
THEIR_HEAD = "lm_head.weight"

_WHOLE = {EMBED: "embed_tokens.weight", "norm.weight": "norm.weight"}
_IN_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.([a-z_]+)")
_DERIVED = re.compile(r"(?:model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""A table that old checkpoints carry and anybody can compute."""


def their_name(ours: str, prefix: str = "model.") -> str:
    """`layers.3.attention.q.weight` as `model.layers.3.self_attn.q_proj.weight`."""
    if ours == HEAD:
        return THEIR_HEAD
    if ours in _WHOLE:
        return prefix + _WHOLE[ours]
    found = _LAYER.fullmatch(ours)
    if found is None or found[2] not in _IN_LAYER:
        raise KeyError(ours)
    return f"{prefix}layers.{found[1]}.{_IN_LAYER[found[2]]}.{found[3]}"


def prefix_of(names: Iterable[str]) -> str:
    """`model.`, or nothing where the checkpoint was saved from the model without its head."""
    return "" if _WHOLE[EMBED] in set(names) else "model."


def is_derived(theirs: str) -> bool:
    """Whether a tensor of a checkpoint holds nothing that was learned."""
    return _DERIVED.fullmatch(theirs) is not None
