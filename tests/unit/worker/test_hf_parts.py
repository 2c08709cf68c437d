"""The small parts of Hugging Face folders: tensor files, names, vocabularies, shards, byte tokenizers."""

from __future__ import annotations

import io
import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import ConfigError, IntegrityError
from llmctl.storage.corpus.tokenizer import BYTES, FileTokenizer
from llmctl.wire.model import ModelConfig, count_parameters
from llmctl.wire.recipe import LoraSpec
from llmctl.worker.hf.export import split
from llmctl.worker.hf.folder import shapes, shortened
from llmctl.worker.hf.names import their_name
from llmctl.worker.hf.tensorfile import Planned, TensorFile, write_header, write_tensor
from llmctl.worker.hf.tokenizer import byte_tokenizer
from llmctl.worker.hf.vocabulary import check_vocabulary
from llmctl.worker.lora import LoraLinear, add_adapters, is_adapter, merged
from llmctl.worker.model.decoder import initialise, make_decoder

CONFIG = ModelConfig(
    vocab_size=64,
    dim=32,
    layers=2,
    heads=4,
    kv_heads=2,
    ffn_dim=48,
    tied_head=False,
    qkv_bias=True,
    qk_norm=True,
)


def written(tensors: dict[str, torch.Tensor]) -> io.BytesIO:
    stream = io.BytesIO()
    planned = [Planned(name=n, dtype=t.dtype, shape=tuple(t.shape)) for n, t in tensors.items()]
    offsets = write_header(stream, planned)
    for name, tensor in reversed(tensors.items()):
        stream.seek(offsets[name])
        write_tensor(stream, tensor)
    return stream


def opened(stream: io.BytesIO) -> TensorFile:
    stream.seek(0)
    return TensorFile(stream, where="x.safetensors", size=len(stream.getvalue()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_what_is_written_is_what_safetensors_reads_and_we_read(dtype: torch.dtype) -> None:
    """Our writer and reader speak the format of the reference library, whatever the order of writing."""
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {"a": torch.arange(12).view(3, 4).to(dtype), "b": torch.ones((), dtype=dtype)}
    tensors["empty"] = torch.empty((0, 3), dtype=dtype)
    stream = written(tensors)
    theirs = safetensors.load(stream.getvalue())
    mine = opened(stream)
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(mine.read(name), tensor)
    assert torch.equal(mine.read("a", (1, 3)), tensors["a"][1:3])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 4) + b"[1]]",
        struct.pack("<Q", 4) + b"nope",
    ],
)
def test_a_file_that_is_none_is_refused(content: bytes) -> None:
    """A damaged header is an error of one line, not a traceback and not a gigabyte of memory."""
    with pytest.raises(IntegrityError, match=r"x\.safetensors"):
        opened(io.BytesIO(content))


def test_offsets_outside_the_file_are_refused() -> None:
    """No header can make us read what is not there."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    with pytest.raises(IntegrityError, match="a does not fit"):
        opened(io.BytesIO(struct.pack("<Q", len(header)) + header + b"\0" * 8))


def test_shapes_are_those_of_the_module() -> None:
    """What the files are compared with is what the decoder is made of."""
    model = make_decoder(CONFIG, torch.device("meta"))
    assert shapes(CONFIG) == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert sum(torch.Size(shape).numel() for shape in shapes(CONFIG).values()) == count_parameters(CONFIG)


def test_every_parameter_has_a_name_of_theirs() -> None:
    """No two parameters share one, and none is without."""
    names = [their_name(name) for name in shapes(CONFIG)]
    assert len(set(names)) == len(names)
    assert "model.layers.1.self_attn.k_norm.weight" in names


@given(st.lists(st.integers(0, 40), min_size=1, unique=True))
def test_ranges_of_layers_name_each_layer(numbers: list[int]) -> None:
    """The short form of a list of tensors loses none of them."""
    told = shortened(f"layers.{number}.x" for number in numbers)
    inside = told.removeprefix("layers.").removesuffix(".x").strip("{}")
    found: list[int] = []
    for part in inside.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(numbers)


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 100))
def test_shards_keep_order_and_limit(sizes: list[int], limit: int) -> None:
    """Every tensor is in one file, in order; only a tensor larger than the limit exceeds it."""
    planned = [Planned(name=str(i), dtype=torch.uint8, shape=(size,)) for i, size in enumerate(sizes)]
    shards = split(planned, limit)
    assert [tensor for group in shards.values() for tensor in group] == planned
    assert all(len(group) == 1 or sum(t.bytes for t in group) <= limit for group in shards.values())
    assert len(shards) > 1 or list(shards) == ["model.safetensors"]


def test_bytes_have_a_tokenizer_file() -> None:
    """The exported tokenizer of a byte model maps every text to its bytes, and back."""
    tokenizer = FileTokenizer("tokenizer.json", json.dumps(byte_tokenizer()).encode())
    text = "".join(map(chr, range(0x250))) + "€ 🎈"
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert (tokenizer.vocab_size, tokenizer.eos) == (257, 256)


def bpe(vocab: dict[str, int], **added: int) -> bytes:
    tokens = [{"content": name, "id": index} for name, index in added.items()]
    return json.dumps({"model": {"vocab": vocab}, "added_tokens": tokens}).encode()


def check(
    model: bytes | None, corpus: bytes | None, vocab_size: int = 3, name: str = "tokenizer.json"
) -> None:
    check_vocabulary(CONFIG, model, corpus=corpus, name=name, vocab_size=vocab_size)


def test_the_same_ids_for_the_same_tokens_are_enough() -> None:
    """A tokenizer file may be formatted otherwise, or know fewer special tokens."""
    check(bpe({"a": 0, "b": 1}, eos=2), bpe({"b": 1, "a": 0}))
    check(None, None, name=BYTES)
    unigram = json.dumps({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}).encode()
    check(unigram, bpe({"a": 0, "b": 1}))


@pytest.mark.parametrize(
    ("model", "corpus", "size", "name", "told"),
    [
        (bpe({"a": 0, "b": 1}), bpe({"a": 1, "b": 0}), 2, "t", "'a' is id 1 in the corpus, 0 in the model"),
        (bpe({"a": 0}), bpe({"a": 0, "c": 1}), 2, "t", "'c' is id 1 in the corpus, none in the model"),
        (bpe({"a": 0}), None, 2, BYTES, "single bytes"),
        (None, None, 65, BYTES, "65 token ids, the model knows 64"),
    ],
)
def test_other_ids_are_refused_with_the_first_difference(
    model: bytes | None, corpus: bytes | None, size: int, name: str, told: str
) -> None:
    """Whoever mixes up tokenizers reads where they differ."""
    with pytest.raises(ConfigError) as caught:
        check(model, corpus, size, name)
    assert told in caught.value.message


def test_adapters_begin_as_nothing_and_are_all_that_learns() -> None:
    """B is zero, so the model's output is the base's; only A and B ask for gradients."""
    base = make_decoder(CONFIG, torch.device("cpu"))
    initialise(base, 3)
    ids = torch.arange(12).view(2, 6)
    before = base(ids).detach()
    add_adapters(base, LoraSpec(rank=2, targets=("q", "down")))
    initialise(base, 3, learning_only=True)
    assert torch.equal(base(ids), before)
    learning = {name for name, p in base.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in base.named_parameters() if is_adapter(name)}
    assert len(learning) == 2 * 2 * CONFIG.layers


def test_a_merged_matrix_is_the_layer_with_its_adapter() -> None:
    """W + alpha/r B A gives what the adapted layer gives."""
    spec = LoraSpec(rank=2, alpha=6.0)
    layer = LoraLinear(torch.nn.Linear(5, 4), spec)
    with torch.no_grad():
        layer.lora_a.normal_()
        layer.lora_b.normal_()
        x = torch.randn(3, 5)
        adapters = {"l.lora_a": layer.lora_a, "l.lora_b": layer.lora_b}
        [(_, weight)] = merged([("l.weight", layer.weight)], adapters.get, spec)
        torch.testing.assert_close(torch.nn.functional.linear(x, weight, layer.bias), layer(x))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (LoraSpec(targets=("qq",)), "no matrix qq"),
        (LoraSpec(targets=()), "empty"),
        (LoraSpec(rank=0), "rank 0"),
        (LoraSpec(rank=16), r"rank 16 is no less"),
    ],
)
def test_adapters_that_can_not_be_are_refused(spec: LoraSpec, told: str) -> None:
    """The field that is wrong is named."""
    with pytest.raises(ConfigError, match=told):
        add_adapters(make_decoder(CONFIG, torch.device("meta")), spec)
