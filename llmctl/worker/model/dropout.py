"""Dropout whose masks depend on (seed, sample, layer, place) and on nothing else.

A mask drawn from a rank's own random stream would differ with every layout, and a resumed run would need
each rank's stream. Here a sample's position in the stream of all samples, which stands for step and place
in the batch, seeds its masks: any layout, any micro-batch size and any recomputation draws the same ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The dropout of one forward pass.

    Attributes:
        samples: each sample's position in the stream of all samples, int64 on the CPU.
        part, parts: the rank holds part `part` of `parts` of the sequence (sequence parallel).
    """

    rate: float
    seed: int
    samples: Tensor
    part: int = 0
    parts: int = 1

    def drop(self, x: Tensor, layer: int, place: int) -> Tensor:
        """`x` [samples, positions, width] with `rate` of its values zeroed and the rest scaled up.

        Args:
            place: tells two sublayers of one layer apart.
        """
        masks = [self._mask(int(sample), layer, place, x) for sample in self.samples]
        return x * torch.stack(masks) * (1.0 / (1.0 - self.rate))

    def _mask(self, sample: int, layer: int, place: int, like: Tensor) -> Tensor:
        generator = torch.Generator(device=like.device)
        generator.manual_seed(seed_of(self.seed, sample, layer, place))
        length, width = like.shape[1:]
        whole = torch.rand(length * self.parts, width, generator=generator, device=like.device)
        return (whole[self.part * length : (self.part + 1) * length] >= self.rate).to(like.dtype)


def dropped(x: Tensor, noise: Noise | None, layer: int, place: int) -> Tensor:
    """`x` after dropout, where there is any."""
    return x if noise is None else noise.drop(x, layer, place)


def seed_of(*parts: int | str) -> int:
    """63 bits from a hash: the same on every machine, and unrelated for neighbouring numbers."""
    text = ":".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
