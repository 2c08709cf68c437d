"""The engine against `transformers`: the same logits and the same text, whatever computes it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.errors import ConfigError, IntegrityError, PreflightError
from llmctl.wire.infer import SamplingSpec
from llmctl.worker.hf.weights import open_weights
from llmctl.worker.infer.engine import compiler
from llmctl.worker.infer.engine.build import build_rank, check_spec
from llmctl.worker.infer.engine.handoff import check_handoff
from llmctl.worker.infer.engine.pipeline import Alone, Rank
from llmctl.worker.infer.engine.place import Place
from llmctl.worker.infer.engine.plan import SCORE, make_step
from tests.engine_kit import add, engine_of, rank_of, run_all, spec_of
from tests.hf_kit import FAMILIES, loaded, run, tiny, tokens

pytestmark = pytest.mark.torch

EXACT = 1e-4
"""Largest difference of logits that counts as equal, in fp32."""

KERNELS = [
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(not shutil.which("g++"), reason="no g++")),
]


def rows(prompt: list[int], slot: int, first: int, stop: int) -> list[tuple[int, int, int]]:
    return [(prompt[position], slot, position) for position in range(first, stop)]


def logits(rank: Rank, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Of all positions: in a chunk, in a second chunk beside another prompt, and then one by one together."""
    length = len(prompts[0])
    steps = [rows(prompts[0], 2, 0, 7)]
    steps.append(rows(prompts[0], 2, 7, 20) + rows(prompts[1], 0, 0, 20))
    steps += [
        rows(prompts[1], 0, position, position + 1) + rows(prompts[0], 2, position, position + 1)
        for position in range(20, length)
    ]
    found: dict[tuple[int, int], torch.Tensor] = {}
    for taken in steps:
        outputs = [(index, SCORE, 0, 0, 0) for index in range(len(taken))]
        step = make_step(0, taken, outputs, [(0.0, 1.0, 0.0, 1.0)] * len(taken))
        made = rank.logits(step, rank.stage.final(rank.work(step, None)))
        found |= {(slot, position): made[index] for index, (_, slot, position) in enumerate(taken)}
    return [torch.stack([found[slot, position] for position in range(length)]) for slot in (2, 0)]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_logits_of_transformers(tmp_path: Path, family: str, kernels: str) -> None:
    """In chunks, beside other requests, and token by token, with a window or without."""
    theirs = tiny(family, tmp_path / "hf", head_dim=16)
    ids = tokens()
    with torch.no_grad():
        wanted = theirs(ids).logits
    rank = rank_of(tmp_path / "hf", kernels=kernels, chunk=40)
    for mine, their in zip(logits(rank, ids.tolist()), wanted, strict=True):
        assert float((mine - their).abs().max()) < EXACT


@pytest.mark.parametrize("kernels", KERNELS)
def test_an_answer_does_not_depend_on_the_batch_around_it(tmp_path: Path, kernels: str) -> None:
    """Greedy and seeded requests give the same tokens alone and among others that come and go; they are
    transformers' own where it decides; scores and means are the model's."""
    theirs = tiny("qwen3", tmp_path / "hf", head_dim=16)
    prompts = [tokens(length=length)[0].tolist() for length in (3, 11, 30, 17, 8)]
    orders = [
        add(str(index), prompt, max_tokens=12 + index, logprobs=2) for index, prompt in enumerate(prompts)
    ]
    sampled = {"temperature": 1.0, "top_p": 0.9, "seed": 5, "repetition_penalty": 1.2}
    orders += [add(f"s{index}", prompt, **sampled) for index, prompt in enumerate(prompts)]
    settings: dict[str, Any] = {"kernels": kernels, "chunk": 9, "max_batch": 3, "threads": 3}
    together = run_all(engine_of(tmp_path / "hf", **settings), orders)
    lonely = engine_of(tmp_path / "hf", **settings)
    for order in orders:
        alone = run_all(lonely, [order])[order.id]
        assert alone.tokens == together[order.id].tokens
        assert alone.last.finish == together[order.id].last.finish == "length"
        for one, other in zip(alone.logprobs, together[order.id].logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=0 if kernels == "native" else 1e-4)
    for index, prompt in enumerate(prompts):
        new = theirs.generate(
            torch.tensor([prompt]),
            max_new_tokens=12 + index,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert together[str(index)].tokens == new[0, len(prompt) :].tolist()
    told = run_all(lonely, [add("score", prompts[2], "score"), add("embed", prompts[2], "embed")])
    with torch.no_grad():
        out = theirs(torch.tensor([prompts[2]]), output_hidden_states=True)
    chances = torch.log_softmax(out.logits[0, :-1], dim=-1)
    wanted = chances.gather(1, torch.tensor(prompts[2][1:]).unsqueeze(1)).squeeze(1)
    assert torch.allclose(torch.tensor(told["score"].last.scores), wanted, atol=EXACT)
    mean = out.hidden_states[-1][0].mean(dim=0)
    assert torch.allclose(torch.tensor(told["embed"].last.embedding), mean, atol=EXACT)


@pytest.mark.parametrize("kernels", KERNELS)
def test_memory_that_nobody_has_written_is_never_seen(tmp_path: Path, kernels: str) -> None:
    """A short request beside a long one, where torch's fresh memory is full of NaN."""
    tiny("llama", tmp_path / "hf", head_dim=16)
    orders = [add("long", tokens(length=60)[0].tolist()), add("short", tokens(length=3)[0].tolist())]
    plain = {order.id: run_all(engine_of(tmp_path / "hf", kernels="torch"), [order]) for order in orders}
    torch.use_deterministic_algorithms(True)
    try:
        together = run_all(engine_of(tmp_path / "hf", kernels=kernels), orders)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, told in together.items():
        assert told.tokens == plain[name][name].tokens


@pytest.mark.parametrize("kernels", KERNELS)
def test_bf16_is_close_to_fp32(tmp_path: Path, kernels: str) -> None:
    """The same model in half the bytes: log-probabilities move by rounding, not by mistakes."""
    tiny("llama-tied-biased", tmp_path / "hf", head_dim=16, initializer_range=0.1)
    spec = spec_of(tmp_path / "hf", kernels=kernels, dtype="bf16")
    rank = rank_of(tmp_path / "hf", kernels=kernels, dtype="bf16")
    with open_weights(spec.model) as weights:
        done = check_handoff(weights, Alone(rank), dtype="bf16", length=96, slots=4, rows=99)
    assert 0 < done.difference < 0.05


def test_the_handoff_check_notices_one_wrong_weight(tmp_path: Path) -> None:
    """A replica that is not the model is refused before it serves; the right one passes."""
    tiny("llama", tmp_path / "right", head_dim=16)
    tiny("llama", tmp_path / "wrong", head_dim=16)
    from safetensors.torch import load_file, save_file

    path = tmp_path / "wrong" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.self_attn.v_proj.weight"][0, 0] += 2.0
    save_file(tensors, path, metadata={"format": "pt"})
    arguments = {"dtype": "fp32", "length": 96, "slots": 4, "rows": 99}
    with open_weights(str(tmp_path / "right")) as weights:
        done = check_handoff(weights, Alone(rank_of(tmp_path / "right")), **arguments)  # type: ignore[arg-type]
        assert done.difference < EXACT
        assert done.agree == 1.0
        with pytest.raises(IntegrityError, match="handoff check"):
            check_handoff(weights, Alone(rank_of(tmp_path / "wrong")), **arguments)  # type: ignore[arg-type]


def test_a_checkpoint_of_ours_is_served_like_the_folder_it_came_from(tmp_path: Path) -> None:
    """In another number of files, with the same answers."""
    tiny("llama", tmp_path / "hf", head_dim=16)
    run("import", "--files", "3", tmp_path / "hf", tmp_path / "ours")
    order = add("a", [5, 6, 7], max_tokens=10)
    first = run_all(engine_of(tmp_path / "hf"), [order])["a"].tokens
    assert run_all(engine_of(tmp_path / "ours"), [order])["a"].tokens == first
    assert loaded(tmp_path / "hf").config.vocab_size == 320


def test_without_a_compiler_torch_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers, and `kernels: native` says why it can't be."""
    tiny("llama", tmp_path / "hf", head_dim=16)
    compiler.library.cache_clear()
    monkeypatch.setattr("shutil.which", lambda *_: None)
    with open_weights(str(tmp_path / "hf")) as weights:
        device = torch.device("cpu")
        built = build_rank(spec_of(tmp_path / "hf"), weights, Place(), device, None)
        assert built.kernels == "torch"
        with pytest.raises(PreflightError, match="no C\\+\\+ compiler"):
            build_rank(spec_of(tmp_path / "hf", kernels="native"), weights, Place(), device, None)
    compiler.library.cache_clear()


@pytest.mark.parametrize("changes", [{"tp": 0}, {"dtype": "int4"}, {"kernels": "x"}, {"max_length": 1}])
def test_a_replica_that_means_nothing_is_refused(changes: dict[str, Any]) -> None:
    """The error names the field."""
    with pytest.raises(ConfigError, match=next(iter(changes))):
        check_spec(spec_of(Path("x"), **changes))
    assert SamplingSpec().temperature == 0
