"""The decoder's numbers, against an implementation that shares no code with it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llmctl.worker.model.config import ModelConfig
from llmctl.worker.model.decoder import Decoder, KVCache, initialise, make_decoder

CPU = torch.device("cpu")


def small(*, tied: bool = True, kv_heads: int = 2) -> Decoder:
    config = ModelConfig(
        vocab_size=50, dim=24, layers=3, heads=4, kv_heads=kv_heads, ffn_dim=40, tied_head=tied
    )
    model = make_decoder(config, CPU)
    initialise(model, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # all ones would hide a norm that forgets its weight
                parameter.uniform_(0.5, 1.5)
    return model


def reference(model: Decoder, tokens: Tensor) -> Tensor:
    """Llama's equations written out with einsum, head by head and position by position."""
    c, w = model.config, {name: p.detach().double() for name, p in model.named_parameters()}

    def norm(x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + c.norm_eps) * w[name]

    def turned(x: Tensor) -> Tensor:
        """Each pair as a complex number, times e^(i * position * theta^(-2i/d))."""
        half = c.head_dim // 2
        z = torch.complex(x[..., :half], x[..., half:])
        rates = torch.tensor([c.rope_theta ** (-2 * i / c.head_dim) for i in range(half)], dtype=torch.double)
        angles = torch.arange(x.shape[1]).double()[:, None] * rates
        z = z * torch.polar(torch.ones_like(angles), angles)[None]
        return torch.cat((z.real, z.imag), dim=-1)

    x = w["embed.weight"][tokens]
    length = tokens.shape[1]
    for n in range(c.layers):
        p = f"layers.{n}."
        h = norm(x, p + "attention_norm.weight")
        q, k, v = (torch.einsum("btd,od->bto", h, w[f"{p}attention.{m}.weight"]) for m in "qkv")
        heads = []
        for head in range(c.heads):
            shared = head // (c.heads // c.kv_heads)
            mine = slice(head * c.head_dim, (head + 1) * c.head_dim)
            theirs = slice(shared * c.head_dim, (shared + 1) * c.head_dim)
            qh, kh = turned(q[..., mine]), turned(k[..., theirs])
            scores = torch.einsum("bqd,bkd->bqk", qh, kh) / math.sqrt(c.head_dim)
            hidden = torch.ones(length, length).triu(1).bool()
            heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[..., theirs])
        x = x + torch.cat(heads, -1) @ w[p + "attention.out.weight"].T
        h = norm(x, p + "ffn_norm.weight")
        gate = h @ w[p + "ffn.gate.weight"].T
        x = x + ((gate * torch.sigmoid(gate)) * (h @ w[p + "ffn.up.weight"].T)) @ w[p + "ffn.down.weight"].T
    return norm(x, "norm.weight") @ (w["embed.weight"] if c.tied_head else w["head.weight"]).T


@pytest.mark.parametrize(("tied", "kv_heads"), [(True, 2), (False, 4), (True, 1)])
def test_logits_are_those_of_the_written_out_equations(tied: bool, kv_heads: int) -> None:
    """RoPE, RMSNorm, SwiGLU, GQA and the head are Llama's, tied or not, grouped or not."""
    model = small(tied=tied, kv_heads=kv_heads)
    tokens = torch.randint(0, 50, (2, 11), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model(tokens).double(), reference(model, tokens), rtol=2e-5, atol=2e-5)


def test_decoding_with_a_cache_gives_the_logits_of_the_whole_text() -> None:
    """A token at a time, in pieces or at once: the same numbers."""
    model = small()
    tokens = torch.randint(0, 50, (2, 10), generator=torch.Generator().manual_seed(4))
    whole = model(tokens)
    cache = KVCache.empty(model.config, batch=2, capacity=10, like=model.embed.weight.detach())
    with torch.no_grad():
        pieces = [model(tokens[:, a:b], cache) for a, b in ((0, 3), (3, 4), (4, 8), (8, 9), (9, 10))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_no_position_sees_a_later_one() -> None:
    """Changing a token changes no logits before it."""
    model = small()
    tokens = torch.randint(0, 50, (1, 8), generator=torch.Generator().manual_seed(5))
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 50
    torch.testing.assert_close(model(tokens)[:, :5], model(changed)[:, :5], rtol=0, atol=0)
    assert not torch.equal(model(tokens)[:, 5], model(changed)[:, 5])


def test_the_first_weights_depend_on_the_seed_alone() -> None:
    """Two ranks that use one seed begin alike, and another seed begins otherwise."""
    first, second = small(), small()
    other = small()
    initialise(other, seed=2)
    assert torch.equal(first.embed.weight, second.embed.weight)
    assert not torch.equal(first.embed.weight, other.embed.weight)


def test_a_fresh_model_knows_nothing() -> None:
    """The first loss is about ln(vocabulary): the initialisation neither explodes nor prefers a token."""
    config = ModelConfig(vocab_size=320, dim=64, layers=4, heads=4, kv_heads=2, ffn_dim=128)
    model = make_decoder(config, CPU)
    initialise(model, seed=0)
    tokens = torch.randint(0, 320, (4, 33), generator=torch.Generator().manual_seed(6))
    loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(320)) < 0.3


def test_rotary_tables_grow_with_the_text() -> None:
    """A text longer than any before is no special case."""
    model = small()
    short = torch.zeros(1, 4, dtype=torch.long)
    long = torch.zeros(1, 700, dtype=torch.long)
    before = model(short)
    assert model(long).shape == (1, 700, 50)
    torch.testing.assert_close(model(short), before)
