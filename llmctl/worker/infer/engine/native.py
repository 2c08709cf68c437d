"""A stage of the model by our own CPU kernels (native.cpp): the same as `stage.TorchStage`, faster."""

from __future__ import annotations

import ctypes
import weakref

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.worker.infer.engine.compiler import Sizes, library
from llmctl.worker.infer.engine.stage import Reduce
from llmctl.worker.infer.engine.weights import LayerWeights, StageWeights
from llmctl.worker.model.decoder import rope_tables

LANES = 16
MATRICES = ("qkv", "out", "gate_up", "down")
VECTORS = ("attention_norm", "ffn_norm", "qkv_bias", "out_bias", "q_norm", "k_norm")
ATTENTION, FFN = 1, 2


def fits(weights: StageWeights, device: torch.device) -> str | None:
    """Why the kernels can't compute this; None where they can."""
    config = weights.config
    if device.type != "cpu":
        return f"the kernels are for CPUs, not for {device.type}"
    if config.dim % LANES or config.head_dim % LANES:
        return f"dim {config.dim} and head_dim {config.head_dim} must be multiples of {LANES}"
    return None


class NativeStage:
    """See `stage.Stage`. Takes the tensors of `weights` over, one layer after the other."""

    def __init__(
        self,
        weights: StageWeights,
        *,
        slots: int,
        length: int,
        max_rows: int,
        threads: int,
        reduce: Reduce | None,
    ) -> None:
        config = weights.config
        self._config, self._reduce = config, reduce
        self._depth = len(weights.layers)
        self._vocab_first, stop = weights.portion.vocab
        self._vocab = stop - self._vocab_first
        self._norm = weights.norm
        self._library = library()
        cos, sin = rope_tables(length, config, None)
        half = config.head_dim // 2
        self._angles = cos[:, :half].contiguous(), sin[:, :half].contiguous()
        ffn = weights.portion.ffn
        sizes = Sizes(
            layers=self._depth,
            dim=config.dim,
            heads=weights.heads,
            kv_heads=weights.kv_heads,
            head_dim=config.head_dim,
            ffn=ffn[1] - ffn[0],
            slots=slots,
            length=length,
            window=config.window or 0,
            max_rows=max_rows,
            threads=threads,
            eps=config.norm_eps,
        )
        bf16 = int(weights.layers[0].qkv.dtype == torch.bfloat16)
        pointers = (table.data_ptr() for table in self._angles)
        self._stage = self._library.stage_new(ctypes.byref(sizes), bf16, *pointers)
        weakref.finalize(self, self._library.stage_free, self._stage)
        self._take(weights)

    def _take(self, weights: StageWeights) -> None:
        """Pack everything, and let go of each tensor when it is packed."""
        embed, head = weights.embed, weights.head
        weights.embed = weights.head = None
        if embed is not None:
            self._matrix(-1, 0, embed)
        if head is not None and head is embed:
            self._library.stage_matrix(self._stage, -1, 1, None, 0, 0)
        elif head is not None:
            self._matrix(-1, 1, head)
        del embed, head
        for index in range(self._depth):
            self._layer(index, weights.layers.pop(0))

    def _layer(self, index: int, layer: LayerWeights) -> None:
        for which, name in enumerate(MATRICES):
            self._matrix(index, which, getattr(layer, name))
        for which, name in enumerate(VECTORS):
            vector = getattr(layer, name)
            if vector is not None:
                given = vector.float().contiguous()
                self._library.stage_vector(self._stage, index, which, given.data_ptr(), len(given))

    def _matrix(self, index: int, which: int, matrix: Tensor) -> None:
        given = matrix.contiguous()
        self._library.stage_matrix(self._stage, index, which, given.data_ptr(), *given.shape)

    def forward(self, rows: Tensor, x: Tensor | None) -> Tensor:
        """See Stage."""
        rows = rows.contiguous()
        out = torch.empty(len(rows), self._config.dim) if x is None else x.contiguous()
        if x is None:
            self._library.stage_embed(
                self._stage, rows.data_ptr(), len(rows), self._vocab_first, out.data_ptr()
            )
        if self._reduce is None:
            self._run(rows, out, 0, self._depth, ATTENTION | FFN, None)
        else:
            self._shared(rows, out, self._reduce, embedded=x is None)
        return out

    def _shared(self, rows: Tensor, x: Tensor, reduce: Reduce, *, embedded: bool) -> None:
        """With other ranks: a sum over them behind every part of a layer."""
        if embedded:
            reduce(x)
        part = torch.empty_like(x)
        for index in range(self._depth):
            for which in (ATTENTION, FFN):
                self._run(rows, x, index, index + 1, which, part)
                reduce(part)
                x += part

    def _run(self, rows: Tensor, x: Tensor, first: int, stop: int, parts: int, y: Tensor | None) -> None:
        where = None if y is None else y.data_ptr()
        given = rows.data_ptr(), len(rows), x.data_ptr()
        self._library.stage_layers(self._stage, *given, first, stop, parts, where)

    @torch.inference_mode()
    def final(self, x: Tensor) -> Tensor:
        """See Stage."""
        assert self._norm is not None  # noqa: S101 - for the type checker
        return F.rms_norm(x, self._norm.shape, self._norm, self._config.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """See Stage."""
        given = hidden.contiguous()
        padded = -(-self._vocab // LANES) * LANES
        out = torch.empty(len(given), padded)
        self._library.stage_logits(self._stage, given.data_ptr(), len(given), out.data_ptr())
        return out[:, : self._vocab]
