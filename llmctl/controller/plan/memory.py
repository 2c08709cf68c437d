"""Memory of one rank in any layout, as the built-in recipe uses it. Pure.

The recipe keeps fp32 weights, fp32 gradients and two fp32 moments: the 16 bytes per parameter of ZeRO (arXiv
1910.02054, section 3.1), all of them sharded by dp_shard as in its stage 3. Activations are counted tensor by
tensor as autograd saves them for this decoder (RMSNorm, SwiGLU, grouped queries, flash attention); the
method, and the division by the tensor-parallel size with sequence parallelism, are those of arXiv 2205.05198,
sections 4.1 and 4.2. A unit is one token of one micro-batch, a size is in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from llmctl.wire.model import ModelConfig
from llmctl.wire.parallel import ParallelSpec, micro_batches_per_step
from llmctl.wire.recipe import LoraSpec, RecipeSpec
from llmctl.wire.stages import pipeline_cuts

FP32, BF16, INT64 = 4, 2, 8
BUCKET = 25 << 20
"""As in worker/parallel/replicas.py: what a sum over replicas has under way at a time."""

CPU_RUNTIME, CPU_MESH_RUNTIME, GPU_RUNTIME = 300_000_000, 420_000_000, 1_500_000_000
"""A process before it has a model. On a CPU: torch's libraries and Python's modules (measured); meshes import
more. On a GPU: the CUDA context and NCCL's buffers (assumed)."""
HEAP_SLACK = 0.3
"""On a CPU, of what comes and goes: glibc's heap does not give all of it back (measured: 0.27 to 0.38)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one rank at the moment when it needs most; the parts add up to `total`.

    Attributes:
        gradients: those that exist at that moment; without replicas they appear as activations go.
        temporary: logits and their gradients, gathered blocks, buckets on their way.
        snapshot: on a CPU, the copy from which checkpoints are saved beside training; a GPU's lies in host
            memory. Ranks that hold the same model share one.
        runtime: the process itself: libraries, contexts, what the allocator can't give back.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    temporary: int
    snapshot: int
    runtime: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def tensors(self) -> int:
        """All but the process itself: what torch's own counters show."""
        return self.total - self.runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Consecutive layers that one rank holds; `lookup`, `scores`: with the embedding, with the logits."""

    layers: range
    lookup: bool
    scores: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    model: ModelConfig
    recipe: RecipeSpec
    spec: ParallelSpec
    bf16: bool
    place: int

    @property
    def tokens(self) -> int:
        """Of one micro-batch."""
        largest = -(-self.recipe.global_batch // self.spec.data_ranks)
        return min(self.recipe.micro_batch, largest) * self.recipe.sequence_length

    @property
    def passes(self) -> int:
        return micro_batches_per_step(self.spec, self.recipe.global_batch, self.recipe.micro_batch)

    @property
    def pieces(self) -> tuple[_Piece, ...]:
        cuts = pipeline_cuts(self.model, self.spec.stages, self.recipe.sequence_length)
        layers = self.model.layers
        return tuple(
            _Piece(layers=range(first, stop), lookup=first == 0, scores=stop == layers)
            for first, stop in cuts[self.place :: self.spec.pp]
        )


def needs_bf16(recipe: RecipeSpec, *, is_cpu: bool) -> bool:
    """Whether the forward pass runs in bf16. `auto` on a CPU: taken for fp32, which needs more."""
    return recipe.precision == "bf16" or (recipe.precision == "auto" and not is_cpu)


def estimate_memory(model: ModelConfig, recipe: RecipeSpec, spec: ParallelSpec, *, is_cpu: bool) -> Memory:
    """Memory of the rank that needs most.

    Args:
        recipe: `micro_batch`, `activation_checkpointing`, `precision`, `global_batch` and
            `sequence_length` matter; its own `parallel` does not.
        spec: a layout that is not refused.
    """
    bf16 = needs_bf16(recipe, is_cpu=is_cpu)
    cases = [_Case(model=model, recipe=recipe, spec=spec, bf16=bf16, place=place) for place in range(spec.pp)]
    return max((_of_place(case, is_cpu) for case in cases), key=lambda memory: memory.total)


def _of_place(case: _Case, is_cpu: bool) -> Memory:
    held = sum(_parameters(case, piece) for piece in case.pieces)
    learning = held if case.recipe.lora is None else _adapters(case.model, case.recipe.lora)
    held += 0 if case.recipe.lora is None else learning
    shards = case.spec.dp_shard
    grads = FP32 * learning // shards
    moments = [_forward_end(case, grads), _backward(case, grads), _update(case, grads)]
    gradients, activations, temporary = max(moments, key=sum)
    runtime = _runtime(case, is_cpu, activations + temporary)
    return Memory(
        parameters=FP32 * held // shards,
        gradients=gradients,
        optimizer=2 * FP32 * learning // shards,
        activations=activations,
        temporary=temporary,
        snapshot=_snapshot(case, learning) if is_cpu else 0,
        runtime=runtime,
    )


def _snapshot(case: _Case, learning: int) -> int:
    """Weights and moments once more, as `worker/checkpoint/snapshot.py` holds them."""
    if not case.recipe.checkpoint_async:
        return 0
    spec = case.spec
    return 3 * FP32 * learning // (spec.world if spec.is_replicas else spec.dp_shard)


def _runtime(case: _Case, is_cpu: bool, passing: int) -> int:
    if not is_cpu:
        return GPU_RUNTIME
    base = CPU_RUNTIME if case.spec.is_replicas else CPU_MESH_RUNTIME
    return base + int(HEAP_SLACK * passing)


# Three moments, each (gradients, activations, temporary): one of them is the peak.


def _forward_end(case: _Case, grads: int) -> tuple[int, int, int]:
    """The backward pass begins: all activations are there, the logits' gradient is made of two tensors."""
    # Logits that are split over the vocabulary need one tensor more: the loss is put together by hand.
    copies = 3 if case.spec.tp > 1 and case.spec.loss_parallel else 2
    logits = copies * _logits(case) if any(piece.scores for piece in case.pieces) else 0
    return _kept(case, grads), _activations(case), logits + _copies(case) + _buffers(case) + _whole_root(case)


def _backward(case: _Case, grads: int) -> tuple[int, int, int]:
    """The backward pass has left the logits and is inside the last block, whose gradients come to be; with
    FSDP two blocks and the root are whole."""
    scores = any(piece.scores for piece in case.pieces)
    left = _activations(case) - (_logits(case) if scores else 0)
    inside = max(_again(case, piece) for piece in case.pieces) + _block_backward(case)
    temporary = inside + _copies(case) + _buffers(case) + _sharding(case)
    sharded = case.spec.dp_shard > 1
    first = 0 if sharded else FP32 * (_block(case) + max(_root(case, piece) for piece in case.pieces))
    return max(_kept(case, grads), min(grads, first)), left, temporary


def _update(case: _Case, grads: int) -> tuple[int, int, int]:
    """The backward pass has ended: every gradient is there, no activation, sums are under way."""
    return grads, 0, _buckets(case, grads) + _buffers(case)


def _kept(case: _Case, grads: int) -> int:
    """Gradients that lie there before a backward pass: in buckets, or from the micro-batch before."""
    spec = case.spec
    in_buckets = spec.dp_replicate > 1 and spec.dp_shard == 1
    earlier = case.passes > 1 and _in_flight(case, 0) < case.passes
    if earlier and spec.pp > 1 and spec.dp_shard > 1:
        # A pipeline lets FSDP sum only after the last backward pass: till then they lie unsharded.
        return FP32 * sum(_parameters(case, piece) for piece in case.pieces)
    return grads if in_buckets or earlier else 0


def _buckets(case: _Case, grads: int) -> int:
    in_buckets = case.spec.dp_replicate > 1 and case.spec.dp_shard == 1
    return min(BUCKET, grads) if in_buckets else 0


def _parameters(case: _Case, piece: _Piece) -> int:
    """Numbers of one piece on one rank, before FSDP shards them."""
    return len(piece.layers) * _block(case) + _root(case, piece)


def _block(case: _Case) -> int:
    model, tp = case.model, case.spec.tp
    matrices = 2 * model.dim * (model.q_dim + model.kv_dim) + 3 * model.dim * model.ffn_dim
    matrices += model.qkv_bias * (model.q_dim + 2 * model.kv_dim)
    vectors = 2 * model.dim + model.out_bias * model.dim + model.qk_norm * 2 * model.head_dim
    return matrices // tp + vectors


def _root(case: _Case, piece: _Piece) -> int:
    """What belongs to no block: embedding, head and last norm."""
    table = case.model.vocab_size * case.model.dim // case.spec.tp
    tables = int(piece.lookup or (piece.scores and case.model.tied_head))
    tables += int(piece.scores and not case.model.tied_head)
    return tables * table + piece.scores * case.model.dim


def _adapters(model: ModelConfig, lora: LoraSpec) -> int:
    """Numbers of all adapters: A is [rank, in], B is [out, rank]."""
    shapes = {
        "q": (model.dim, model.q_dim),
        "k": (model.dim, model.kv_dim),
        "v": (model.dim, model.kv_dim),
        "out": (model.q_dim, model.dim),
        "gate": (model.dim, model.ffn_dim),
        "up": (model.dim, model.ffn_dim),
        "down": (model.ffn_dim, model.dim),
    }
    return model.layers * lora.rank * sum(sum(shapes[name]) for name in lora.targets)


def _activations(case: _Case) -> int:
    """All that autograd keeps for the backward passes of the micro-batches under way."""
    total = sum(
        _in_flight(case, number) * sum(_layer(case, layer) for layer in piece.layers)
        for number, piece in enumerate(case.pieces)
    )
    for number, piece in enumerate(case.pieces):
        if piece.scores:
            total += _in_flight(case, number) * (_last_norm(case) + _logits(case))
        if piece.lookup:
            total += case.passes * case.tokens * 2 * INT64
    return total


def _layer(case: _Case, layer: int) -> int:
    """One layer of one micro-batch: everything, or only its input where it is computed again."""
    setting = case.recipe.activation_checkpointing
    if setting == "full" or (setting == "selective" and layer % 2 == 1):
        return case.tokens * FP32 * case.model.dim // _sequence_parts(case)
    return _whole_layer(case)


def _whole_layer(case: _Case) -> int:
    """Per token, fp32: each norm keeps its input, its normalised input and its output (what the matrices
    read); attention keeps q, k, v, its output and one number per head; SwiGLU keeps gate, silu(gate), up and
    their product. In bf16 each of the five reading matrices keeps a cast copy of its own."""
    model, tp, parts = case.model, case.spec.tp, _sequence_parts(case)
    width = BF16 if case.bf16 else FP32
    norms = 2 * (2 * FP32 * model.dim + FP32) // parts
    read = 5 * BF16 * model.dim if case.bf16 else 2 * FP32 * model.dim
    attention = width * (2 * model.q_dim + 2 * model.kv_dim) + FP32 * model.heads
    if model.qk_norm:
        attention += 2 * FP32 * (model.q_dim + model.kv_dim)
    return case.tokens * (norms + read + (attention + 4 * width * model.ffn_dim) // tp)


def _last_norm(case: _Case) -> int:
    read = (BF16 if case.bf16 else FP32) * case.model.dim
    return case.tokens * ((2 * FP32 * case.model.dim + FP32) // _sequence_parts(case) + read)


def _logits(case: _Case) -> int:
    """One fp32 tensor of one micro-batch's logits; log-softmax keeps one."""
    parts = case.spec.tp if case.spec.loss_parallel else 1
    return case.tokens * FP32 * case.model.vocab_size // parts


def _sequence_parts(case: _Case) -> int:
    return case.spec.tp if case.spec.sequence_parallel else 1


def _in_flight(case: _Case, number: int) -> int:
    """Micro-batches whose activations a rank's piece `number` holds at once.

    1F1B: as many as there are stages from here on (arXiv 2104.04473, section 2.2.1); GPipe: all;
    interleaved: as its warm-up lets in, at most all.
    """
    spec, passes = case.spec, case.passes
    if spec.pp == 1:
        return 1
    if spec.schedule == "gpipe":
        return passes
    if spec.schedule == "1f1b":
        return min(passes, spec.pp - case.place)
    chunks = 2 * (spec.pp - case.place - 1) + (spec.virtual_stages - 1) * spec.pp + 1
    return min(passes, -(-(chunks - number * spec.pp) // spec.virtual_stages) + spec.pp - 1)


def _copies(case: _Case) -> int:
    """Autocast's bf16 copies of the matrices, which autograd holds; FSDP gathers them as bf16 at once."""
    if not case.bf16 or case.spec.dp_shard > 1:
        return 0
    numbers = sum(len(piece.layers) * _block(case) for piece in case.pieces)
    table = case.model.vocab_size * case.model.dim // case.spec.tp
    numbers += table * sum(piece.scores for piece in case.pieces)
    return BF16 * numbers


def _again(case: _Case, piece: _Piece) -> int:
    """A layer that is computed again is there as a whole while its backward pass runs."""
    kept = [_layer(case, layer) for layer in piece.layers]
    return max(0, _whole_layer(case) - min(kept)) if kept else 0


def _block_backward(case: _Case) -> int:
    """Gradients of SwiGLU's three wide tensors and of the residual stream, at once."""
    model = case.model
    return case.tokens * FP32 * (3 * model.ffn_dim // case.spec.tp + 2 * model.dim)


def _buffers(case: _Case) -> int:
    """torch's pipeline keeps one buffer per micro-batch of a step for each activation and each gradient that
    a stage receives, and the gradient of each activation received (torch 2.13, pipelining/stage.py)."""
    if case.spec.pp == 1:
        return 0
    one = case.tokens * FP32 * case.model.dim // _sequence_parts(case)
    return sum((3 - 2 * piece.lookup - piece.scores) * case.passes * one for piece in case.pieces)


def _gathered(case: _Case) -> int:
    return BF16 if case.bf16 else FP32


def _whole_root(case: _Case) -> int:
    """With a pipeline FSDP leaves what it gathered whole; else nothing is whole when logits are made."""
    if case.spec.dp_shard == 1 or case.spec.pp == 1:
        return 0
    return _gathered(case) * sum(_parameters(case, piece) for piece in case.pieces)


def _sharding(case: _Case) -> int:
    """FSDP2 in a backward pass: root and two blocks gathered, the root's gradient, a block's gradient and
    the flat copy of it that is being summed."""
    if case.spec.dp_shard == 1:
        return 0
    width = _gathered(case)
    root = max(_root(case, piece) for piece in case.pieces)
    block = _block(case)
    whole = _whole_root(case) or width * (root + 2 * block)
    return whole + width * (root + block) + FP32 * block
