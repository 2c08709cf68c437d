"""Replicas as they run: ranks as processes, orders over TCP, the real SmolLM2-135M weights."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from llmctl.wire.codec import dumps, loads
from llmctl.wire.infer import CANCEL, DRAIN, STATS, Answer, Order
from tests.engine_kit import Told, add, ask, replica
from tests.hf_kit import tiny
from tests.smollm2_kit import EXACT, NEW, TEXTS, Theirs, real_model, transformers_says

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]

LAYOUTS = {"one process": (1, 1), "tp 2 x pp 2": (2, 2)}
"""tests/integration/test_infer_ssh.py has the others, too."""


@pytest.fixture(scope="module")
def model() -> Path:
    return real_model()


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, Theirs]:
    """By prompt."""
    return transformers_says(model)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_weights_answer_as_with_transformers(
    tmp_path: Path, model: Path, expected: dict[str, Theirs], layout: str
) -> None:
    """In one process, and in two stages of two ranks per matrix (of 3 key-value heads): its tokens, and
    log-probabilities within 1e-4; the check before serving was made; a seed gives the same answer again; a
    drain ends every rank."""
    tp, pp = LAYOUTS[layout]
    orders = [add(text, one.prompt, max_tokens=NEW, logprobs=0) for text, one in expected.items()]
    orders += [add(f"score {text}", one.prompt, "score") for text, one in expected.items()]
    seeded = {"temperature": 0.8, "seed": 3, "top_p": 0.9, "max_tokens": NEW}
    orders.append(add("seeded", expected[TEXTS[2]].prompt, **seeded))
    with replica(tmp_path, model, tp=tp, pp=pp) as running:
        assert running.ready.check is not None
        assert running.ready.check.difference < EXACT
        assert running.ready.check.agree == 1.0
        found = running.ask(orders)
        for text, theirs in expected.items():
            assert found[text].tokens == theirs.tokens
            logprobs = [one.logprob for one in found[text].logprobs]
            assert logprobs == pytest.approx(theirs.logprobs, abs=EXACT, rel=0)
            scores = found[f"score {text}"].last.scores
            assert list(scores) == pytest.approx(theirs.scores, abs=EXACT, rel=0)
        again = running.ask([orders[-1]])
        assert again["seeded"].tokens == found["seeded"].tokens
        running.processes[0].send_signal(signal.SIGTERM)
        assert running.wait() == [0] * (tp * pp)


def test_a_connection_in_all_its_ways(tmp_path: Path) -> None:
    """A stranger is cut off; bad orders are answered by their id; a cancel, a stats, a peer that leaves, and
    a drain do what they say."""
    tiny("llama", tmp_path / "hf", head_dim=16, max_position_embeddings=4096)
    with replica(tmp_path, tmp_path / "hf", max_batch=2, max_length=4096) as running:
        with running.connect("not the token") as stranger:
            assert stranger.recv(1) == b""
        with running.connect() as sock, sock.makefile("rb") as lines:
            sock.sendall(b'{"id": "no order"\n{"op": "dance", "id": "d"}\n')
            answers = [loads(Answer, lines.readline()) for _ in range(2)]
            assert [(answer.id, answer.finish) for answer in answers] == [("", "error"), ("d", "error")]
            bad = [add("long", [1] * 5000), add("hot", [1], temperature=-3.0), add("none", [])]
            assert {told.last.finish for told in ask(sock, lines, bad).values()} == {"error"}
            sock.sendall(dumps(add("endless", [1], max_tokens=4000)).encode() + b"\n")
            told = Told()
            told.take(loads(Answer, lines.readline()))
            sock.sendall(dumps(Order(op=CANCEL, id="endless")).encode() + b"\n")
            while told.last.finish is None:
                told.take(loads(Answer, lines.readline()))
            assert told.last.finish == "cancelled"
            assert 0 < len(told.tokens) < 4000
        with running.connect() as leaves:
            leaves.sendall(dumps(add("endless", [1], max_tokens=4000)).encode() + b"\n")
            assert leaves.recv(1)
        with running.connect() as sock, sock.makefile("rb") as lines:
            for _ in range(2000):
                sock.sendall(dumps(Order(op=STATS, id="s")).encode() + b"\n")
                stats = loads(Answer, lines.readline()).stats
                assert stats is not None
                if stats.free == 2:
                    break
            assert (stats.free, stats.waiting, stats.running) == (2, 0, 0)
            sock.sendall(dumps(add("last", [1, 2], max_tokens=30)).encode() + b"\n")
            sock.sendall(dumps(Order(op=DRAIN)).encode() + b"\n")
            late = ask(sock, lines, [])
            last = Told()
            while last.last.finish is None:
                last.take(loads(Answer, lines.readline()))
            assert (late, last.last.finish, len(last.tokens)) == ({}, "length", 30)
            assert lines.readline() == b""
        assert running.wait() == [0]


def test_a_replica_ends_as_a_whole(tmp_path: Path) -> None:
    """When one rank is killed while the replica has nothing to do, the others end with an error; an idle
    replica outlives the timeout of its group before."""
    tiny("llama", tmp_path / "hf", head_dim=16)
    with replica(tmp_path, tmp_path / "hf", tp=2, pp=2, pg_timeout_s=20.0) as running:
        assert len(running.ask([add("a", [1, 2, 3])])["a"].tokens) == 8
        running.processes[3].kill()
        codes = running.wait()
        assert codes[3] == -signal.SIGKILL
        assert 0 not in codes
