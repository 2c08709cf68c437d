"""How `vllm serve` is called, what it is asked, and what its answers mean."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.errors import ConfigError, IntegrityError, NotFoundError
from llmctl.wire import environment
from llmctl.wire.infer import TOKEN, Order, ReplicaSpec, SamplingSpec
from llmctl.wire.manifests import COMMIT_MARKER
from llmctl.wire.serving import BUILTIN, VLLM, RankPlace, ReplicaPlan
from llmctl.worker.infer.orders import RankSlot, shares
from llmctl.worker.infer.vllm.arguments import serve_arguments, serve_environment, visible
from llmctl.worker.infer.vllm.requests import body, scored, streamed
from llmctl.worker.infer.vllm.source import VllmFolder, check_length, vllm_folder

SHAPE = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
SPEC = ReplicaSpec(name="r", model="/m", ready_file="/x", tp=2, pp=2, max_batch=3, max_length=100)


def folder(**config: Any) -> VllmFolder:
    return VllmFolder(path=Path("/m"), config={**SHAPE, **config})


def flags(spec: ReplicaSpec, model: VllmFolder) -> dict[str, str]:
    """Flag by flag; one without a value has an empty one."""
    words = serve_arguments(spec, model, "py", "v.sock", ("10.0.0.1", 99))[5:]
    found, name = {}, ""
    for word in words:
        if word.startswith("--"):
            name, found[word] = word, ""
        else:
            found[name] = word
    return found


def test_the_first_host_serves_on_a_socket_and_the_others_have_no_server() -> None:
    """One host: no word of others. Two: both name the meeting place, each its own number."""
    alone = flags(SPEC, folder())
    assert alone["--uds"] == "v.sock"
    assert (alone["--tensor-parallel-size"], alone["--pipeline-parallel-size"]) == ("2", "2")
    assert (alone["--dtype"], alone["--max-num-seqs"]) == ("bfloat16", "3")
    assert not {"--nnodes", "--master-addr", "--headless"} & set(alone)
    first = flags(replace(SPEC, nodes=2), folder())
    second = flags(replace(SPEC, nodes=2, node=1), folder())
    for part, number in ((first, "0"), (second, "1")):
        assert (part["--nnodes"], part["--node-rank"]) == ("2", number)
        assert (part["--master-addr"], part["--master-port"]) == ("10.0.0.1", "99")
    assert "--uds" in first
    assert "--headless" not in first
    assert "--headless" in second
    assert "--uds" not in second


def test_the_longest_request_can_be_scored_where_the_model_has_the_room() -> None:
    """One position more than a request may have, never more than the model has; a request longer than the
    model is refused."""
    assert flags(SPEC, folder())["--max-model-len"] == "101"
    assert flags(SPEC, folder(max_position_embeddings=100))["--max-model-len"] == "100"
    check_length(folder(max_position_embeddings=100), 100)
    with pytest.raises(ConfigError, match="100 positions"):
        check_length(folder(max_position_embeddings=100), 101)


def test_the_cache_of_a_cpu_is_bounded_and_a_gpu_is_left_to_vllm() -> None:
    """Slots x length in whole blocks, twice (keys and values), by layers, heads and bytes; a shape that is
    not known, or a GPU: vLLM's own rule."""
    spec = replace(SPEC, max_length=127)
    blocks = 3 * 2 + 1
    assert int(flags(spec, folder())["--kv-cache-memory-bytes"]) == 2 * 2 * 64 * 2 * blocks * 128
    assert "--kv-cache-memory-bytes" not in flags(replace(spec, devices=(0,)), folder())
    unknown = VllmFolder(path=Path("/m"), config={"vocab_size": 5})
    assert "--kv-cache-memory-bytes" not in flags(spec, unknown)
    inner = VllmFolder(path=Path("/m"), config={"text_config": SHAPE})
    assert inner.vocab_size == 50


def test_the_child_gets_no_secret_and_no_rank_of_ours() -> None:
    """torchrun's variables and both secrets stay behind, the rest goes along; GPUs by their own names."""
    given = {"RANK": "3", "WORLD_SIZE": "4", TOKEN: "t", environment.INFER_API_KEY: "k", "HOME": "/h"}
    found = serve_environment(replace(SPEC, threads=2), given)
    assert not {"RANK", "WORLD_SIZE", TOKEN, environment.INFER_API_KEY} & set(found)
    assert (found["HOME"], found["OMP_NUM_THREADS"], found["HF_HUB_OFFLINE"]) == ("/h", "2", "1")
    assert "CUDA_VISIBLE_DEVICES" not in found
    assert serve_environment(replace(SPEC, devices=(2, 3)), given)["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert visible((1, 2), "4,GPU-a,6") == "GPU-a,6"


def test_one_process_per_host_where_the_engine_starts_its_ranks() -> None:
    """Builtin: a process per rank. vLLM: one per host, which knows all its slots there."""
    places = ((0, 2), (0, 3), (1, 0), (1, 1))
    plan = ReplicaPlan(index=0, ranks=tuple(RankPlace(node=node, slot=slot) for node, slot in places))
    assert [(node, len(mine)) for node, mine in shares(plan, BUILTIN)] == [(0, 2), (1, 2)]
    assert shares(plan, VLLM) == [
        (0, (RankSlot(rank=0, slot=2, more=(3,)),)),
        (1, (RankSlot(rank=2, slot=0, more=(1,)),)),
    ]


def order(task: str = "generate", **sampling: Any) -> Order:
    return Order(op="add", id="a", task=task, tokens=(5, 6, 7), sampling=SamplingSpec(**sampling))


def test_what_is_asked() -> None:
    """Every setting of ours goes along, and ends of text are ours alone; a seed fits into vLLM's 64 bits."""
    asked = body(order(max_tokens=50, temperature=0.5, top_k=3, stop_tokens=(9,), seed=2**64 - 1), limit=20)
    assert asked["max_tokens"] == 17
    assert (asked["temperature"], asked["top_k"], asked["stop_token_ids"]) == (0.5, 3, [9])
    assert (asked["ignore_eos"], asked["stream"], asked["return_token_ids"]) == (True, True, True)
    assert asked["seed"] == -1
    assert "logprobs" not in asked
    assert body(order(logprobs=0), limit=20)["logprobs"] == 0
    assert body(order("score"), limit=20) == {
        "prompt": [5, 6, 7],
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": 0,
    }


def chunk(tokens: list[int], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"text": "x", "token_ids": tokens, "finish_reason": finish, **more}]}


def test_what_a_stream_says() -> None:
    """Tokens as they come; the stop token and its probability are not part of the answer; alternatives are
    the likeliest, though vLLM names the chosen token first."""
    wanted = order(stop_tokens=(9,), logprobs=1)
    probabilities = {
        "token_logprobs": [-2.0, -0.5],
        "top_logprobs": [{"token_id:4": -2.0, "token_id:8": -0.1}, {"token_id:9": -0.5}],
    }
    last = streamed(wanted, chunk([4, 9], "stop", logprobs=probabilities))
    assert last is not None
    assert (last.tokens, last.finish) == ((4,), "stop")
    (found,) = last.logprobs
    assert (found.token, found.logprob, found.top_tokens, found.top_logprobs) == (4, -2.0, (8,), (-0.1,))
    whole = streamed(order(), chunk([4, 9], "length"))
    assert whole is not None
    assert (whole.tokens, whole.finish) == ((4, 9), "length")
    assert streamed(order(), chunk([])) is None
    assert streamed(order(), {"choices": [], "usage": {}}) is None


def test_what_is_no_answer() -> None:
    """An error and an abort are one; text without ids is another program's, or an old vLLM's."""
    failed = streamed(order(), {"error": {"message": "out of\nroom", "code": 500}})
    assert failed is not None
    assert (failed.finish, failed.error) == ("error", "out of room")
    aborted = streamed(order(), chunk([1], "abort"))
    assert aborted is not None
    assert aborted.finish == "error"
    with pytest.raises(IntegrityError, match="token ids"):
        streamed(order(), {"choices": [{"text": "x", "finish_reason": None}]})


def test_scores_are_of_the_prompts_own_tokens() -> None:
    """One per token but the first, found by its id among those that vLLM names."""
    entries = [None, {"6": {"logprob": -1.5}, "3": {"logprob": -0.1}}, {"7": {"logprob": -2.5}}]
    document = {"choices": [{"prompt_logprobs": entries}]}
    assert scored(order("score"), document).scores == (-1.5, -2.5)
    with pytest.raises(IntegrityError):
        scored(order("score"), {"choices": [{"prompt_logprobs": entries[:2]}]})


def test_only_a_folder_of_the_host_is_a_model(tmp_path: Path) -> None:
    """A URL, a checkpoint and an empty folder are refused with what to do; a folder gives its small files."""
    with pytest.raises(ConfigError, match="folder of the host"):
        vllm_folder("memory://m/x")
    with pytest.raises(NotFoundError, match=r"config\.json"):
        vllm_folder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    (tmp_path / "chat_template.jinja").write_text("x")
    (tmp_path / "model.safetensors").write_text("big")
    assert set(vllm_folder(str(tmp_path)).small_files()) == {"config.json", "chat_template.jinja"}
    (tmp_path / COMMIT_MARKER).write_text("{}")
    with pytest.raises(ConfigError, match="is a checkpoint") as caught:
        vllm_folder(str(tmp_path))
    assert "llmctl ckpt export" in (caught.value.hint or "")
