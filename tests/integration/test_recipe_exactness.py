"""The loss curve depends on the data and the seed, never on how many processes share the work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.worker_kit import RECIPE, Cluster, make_corpus

pytestmark = pytest.mark.torch

TWENTY = replace(RECIPE, steps=20, checkpoint_every=0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Twenty losses of one process, 5 samples at a time."""
    cluster = Cluster(base=tmp_path_factory.mktemp("alone"), corpus=corpus)
    cluster.train(replace(TWENTY, micro_batch=5))
    return cluster.losses()


def largest_gap(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other) == 20
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param((2,), id="2 ranks with 2 and 3 samples"),
        pytest.param((2, 1), id="3 ranks on 2 hosts with 1, 2 and 2 samples"),
    ],
)
def test_ranks_with_unequal_samples_match_one_process(
    ranks: tuple[int, ...], corpus: Path, alone: list[float], tmp_path: Path
) -> None:
    """Five samples over two or three ranks, in ragged micro-batches, give one process's twenty losses."""
    cluster = Cluster(base=tmp_path, corpus=corpus, ranks=ranks)
    cluster.train(TWENTY)
    assert largest_gap(alone, cluster.losses()) < 1e-5


def test_accumulation_in_one_process_matches(corpus: Path, alone: list[float], tmp_path: Path) -> None:
    """Micro-batches of 2, 2 and 1 are the batch of 5."""
    cluster = Cluster(base=tmp_path, corpus=corpus)
    cluster.train(TWENTY)
    assert largest_gap(alone, cluster.losses()) < 1e-5


def test_a_rank_without_any_sample_takes_part(corpus: Path, tmp_path: Path) -> None:
    """Two samples over three ranks: the idle rank neither hangs the others nor changes the result."""
    recipe = replace(TWENTY, global_batch=2, micro_batch=1)
    one = Cluster(base=tmp_path / "one", corpus=corpus)
    three = Cluster(base=tmp_path / "three", corpus=corpus, ranks=(3,))
    one.train(recipe)
    three.train(recipe)
    assert largest_gap(one.losses(), three.losses()) < 1e-5
