"""What the front counts on of a replica, whatever computes in it: builtin, vLLM, and the stand-in for vLLM.

vLLM itself: LLMCTL_VLLM_PYTHON=/path/to/python with vLLM installed, mark `vllm`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.wire.codec import dumps, loads
from llmctl.wire.infer import CANCEL, DRAIN, STATS, Answer, Order, ReplicaStats
from tests.engine_kit import Replica, Told, add, ask, replica
from tests.hf_kit import library, loaded
from tests.lab import smollm2
from tests.vllm_kit import PYTHON, fake_python, vllm_replica

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]

PROMPT = "The capital of France is"
NEW = 12
CLOSE = 2e-3
"""Of log-probabilities in fp32: engines sum in different orders."""
ENGINES = ["builtin", "stand-in", pytest.param("vllm", marks=pytest.mark.vllm)]
SIZES: dict[str, Any] = {"max_batch": 2, "max_length": 512, "check": False}


@pytest.fixture(scope="module")
def model() -> Path:
    """SmolLM2-135M-Instruct."""
    library("transformers")
    library("gguf")
    if not smollm2.folder().is_dir():
        subprocess.run(smollm2.COMMAND, check=True, timeout=500)
    return smollm2.folder()


class Truth:
    """What transformers makes of the prompt, greedily."""

    def __init__(self, model: Path) -> None:
        theirs = loaded(model)
        words = library("transformers").AutoTokenizer.from_pretrained(model)
        ids = words(PROMPT, return_tensors="pt")["input_ids"]
        mask = torch.ones_like(ids)
        out = theirs.generate(
            ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None
        )
        with torch.no_grad():
            logprobs = theirs(out).logits[0].log_softmax(-1)
        self.prompt: list[int] = ids[0].tolist()
        self.answer: list[int] = out[0, ids.shape[1] :].tolist()
        targets = out[0, 1:]
        every = logprobs[:-1].gather(1, targets[:, None])[:, 0].tolist()
        self.scores: list[float] = every[: len(self.prompt) - 1]
        self.chosen: list[float] = every[len(self.prompt) - 1 :]


@pytest.fixture(scope="module")
def truth(model: Path) -> Truth:
    return Truth(model)


def start(engine: str, folder: Path, model: Path, **changes: Any) -> AbstractContextManager[Replica]:
    """A replica of that kind."""
    if engine == "builtin":
        return replica(folder, model, **{**SIZES, **changes})
    if engine == "stand-in":
        return vllm_replica(folder, model, fake_python(folder / "venv"), **{**SIZES, **changes})
    python = os.environ.get(PYTHON)
    if not python:
        pytest.skip(f"{PYTHON} is not set")
    return vllm_replica(folder, model, python, **{**SIZES, **changes})


@pytest.fixture(scope="module", params=ENGINES)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: Path
) -> Iterator[Replica]:
    with start(request.param, tmp_path_factory.mktemp("replica"), model) as found:
        yield found


def test_the_same_tokens_probabilities_and_scores(running: Replica, truth: Truth) -> None:
    """Greedy tokens are transformers' own, and so are log-probabilities and scores; a stop token ends an
    answer and is not in it; a seed repeats itself; more requests than slots are all answered."""
    at = next(i for i in range(3, NEW) if truth.answer[i] not in truth.answer[:i])
    seeded = {"temperature": 1.0, "top_p": 0.95, "top_k": 50, "seed": 7, "max_tokens": NEW}
    orders = [
        add("greedy", truth.prompt, max_tokens=NEW, logprobs=2),
        add("plain", truth.prompt, max_tokens=NEW, logprobs=0),
        add("stop", truth.prompt, max_tokens=NEW, stop_tokens=(truth.answer[at],), logprobs=1),
        add("score", truth.prompt, "score"),
        add("one", truth.prompt[:1], "score"),
        add("seed", truth.prompt, **seeded),
        add("again", truth.prompt, **seeded),
        add("other", truth.prompt, **{**seeded, "seed": 8}),
    ]
    found = running.ask(orders)
    assert found["greedy"].tokens == found["plain"].tokens == truth.answer
    assert found["greedy"].last.finish == found["seed"].last.finish == "length"
    assert [one.token for one in found["greedy"].logprobs] == truth.answer
    assert [one.logprob for one in found["greedy"].logprobs] == pytest.approx(truth.chosen, abs=CLOSE)
    assert all(len(one.top_tokens) == 2 for one in found["greedy"].logprobs)
    assert [one.top_tokens[0] for one in found["greedy"].logprobs] == truth.answer
    assert all(one.top_tokens == () for one in found["plain"].logprobs)
    assert (found["stop"].tokens, found["stop"].last.finish) == (truth.answer[:at], "stop")
    assert len(found["stop"].logprobs) == at
    assert found["score"].last.scores == pytest.approx(truth.scores, abs=CLOSE)
    assert (found["one"].last.finish, found["one"].last.scores) == ("stop", ())
    assert found["seed"].tokens == found["again"].tokens != found["other"].tokens
    assert len(found["seed"].tokens) == NEW


def test_limits_and_bad_orders(running: Replica) -> None:
    """What can't be done is an error by its id, and the replica goes on; an answer ends at the length that a
    request may have."""
    with running.connect("not the token") as stranger:
        assert stranger.recv(1) == b""
    with running.connect() as sock, sock.makefile("rb") as lines:
        sock.sendall(b'{"id": "no order"\n{"op": "dance", "id": "d"}\n')
        answers = [loads(Answer, lines.readline()) for _ in range(2)]
        assert [(answer.id, answer.finish) for answer in answers] == [("", "error"), ("d", "error")]
        bad = [add("long", [1] * 513), add("full", [1] * 512), add("none", []), add("id", [10**6])]
        bad.append(add("hot", [1], temperature=-3.0))
        assert {told.last.finish for told in ask(sock, lines, bad).values()} == {"error"}
        fits = ask(sock, lines, [add("fits", [1] * 500, max_tokens=400), add("score", [1] * 512, "score")])
        assert (fits["fits"].last.finish, len(fits["fits"].tokens)) == ("length", 12)
        assert len(fits["score"].last.scores) == 511


def test_a_cancel_and_a_leaver_free_their_slots(running: Replica) -> None:
    """Whose request is not wanted any more gives its slot back before its answer would have ended."""
    endless = [add(str(number), [1, 2, 3], max_tokens=500) for number in range(2)]
    with running.connect() as sock, sock.makefile("rb") as lines:
        sock.sendall(b"".join(dumps(order).encode() + b"\n" for order in endless))
        told = {"0": Told(), "1": Told()}
        while not all(one.tokens for one in told.values()):
            answer = loads(Answer, lines.readline())
            told[answer.id].take(answer)
        sock.sendall(dumps(Order(op=CANCEL, id="0")).encode() + b"\n")
        while told["0"].last.finish is None:
            answer = loads(Answer, lines.readline())
            told[answer.id].take(answer)
        assert told["0"].last.finish == "cancelled"
        assert 0 < len(told["0"].tokens) < 500
    assert until_idle(running).running == 0


def until_idle(running: Replica) -> ReplicaStats:
    """Its numbers as soon as nothing runs."""
    with running.connect() as sock, sock.makefile("rb") as lines:
        until = time.monotonic() + 120
        while True:
            sock.sendall(dumps(Order(op=STATS, id="s")).encode() + b"\n")
            stats = loads(Answer, lines.readline()).stats
            assert stats is not None
            if stats.running == 0:
                assert (stats.slots, stats.free, stats.waiting) == (2, 2, 0)
                return stats
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_drain_finishes_what_is_there(tmp_path: Path, model: Path, engine: str) -> None:
    """After `drain` nothing new is taken, what there is comes whole, and the process ends with 0."""
    with start(engine, tmp_path, model) as running:
        with running.connect() as sock, sock.makefile("rb") as lines:
            sock.sendall(dumps(add("last", [1, 2], max_tokens=60)).encode() + b"\n")
            first = loads(Answer, lines.readline())
            sock.sendall(dumps(Order(op=DRAIN)).encode() + b"\n")
            last = Told()
            last.take(first)
            late = add("late", [1], max_tokens=1)
            sock.sendall(dumps(late).encode() + b"\n")
            refused = None
            while last.last.finish is None:
                answer = loads(Answer, lines.readline())
                if answer.id == "late":
                    refused = answer.finish
                else:
                    last.take(answer)
            assert (refused, last.last.finish, len(last.tokens)) == ("error", "length", 60)
            assert lines.readline() == b""
        assert running.wait() == [0]


@pytest.mark.parametrize("engine", ["stand-in", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_a_replica_on_two_hosts_ends_with_its_vllm(
    tmp_path: Path, model: Path, truth: Truth, engine: str
) -> None:
    """Two parts that find one another give the same tokens; killing vLLM's process, with a request under way,
    ends the first part with no answer of its own: the front starts it over elsewhere."""
    with start(engine, tmp_path, model, nodes=2, pp=2) as running:
        assert running.ask([add("a", truth.prompt, max_tokens=NEW)])["a"].tokens == truth.answer
        with running.connect() as sock, sock.makefile("rb") as lines:
            sock.sendall(dumps(add("endless", [1, 2], max_tokens=500)).encode() + b"\n")
            assert loads(Answer, lines.readline()).tokens
            os.kill(child_of(running.processes[0].pid), signal.SIGKILL)
            rest = [loads(Answer, line) for line in lines]
            assert all(answer.finish is None for answer in rest)
        assert running.processes[0].wait(timeout=120) == 1


def child_of(pid: int) -> int:
    """The one process that `pid` has started."""
    (found,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found)
