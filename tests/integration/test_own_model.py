"""A model of one's own by `llmctl.worker`: the templates' in every layout, and from `init` to a resume."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.controller.config.templates import template_dir
from llmctl.storage.corpus.tarmake import shard_tars
from llmctl.wire.parallel import ParallelSpec
from llmctl.wire.recipe import OptimizerSpec
from tests.integration.cluster import Cluster
from tests.layout_kit import Result, case, run_worlds
from tests.worker_kit import RECIPE, Job, _spawn
from tests.worker_kit import Cluster as Host

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

OWN = ("text", "image", "speech")
LAYOUTS = {
    "ddp": ParallelSpec(dp_replicate=2),
    "fsdp": ParallelSpec(dp_shard=2),
    "tp": ParallelSpec(tp=2),
    "pp": ParallelSpec(pp=2),
    "pp x fsdp x tp": ParallelSpec(pp=2, dp_shard=2, tp=2),
}
STEPS = 8
SETTINGS = {
    "steps": STEPS,
    "global_batch": 10,  # by two: five samples each, in micro-batches of 3 and 2
    "micro_batch": 3,
    "checkpoint_every": 4,
    "optimizer": OptimizerSpec(lr=5e-4, warmup_steps=2),
    "self_check": True,
}


def make_data(name: str, folder: Path) -> Path:
    """The template's samples, as the tar data set that its job names."""
    script = template_dir() / name / "data.py"
    subprocess.run([sys.executable, str(script), str(folder / "samples")], check=True, timeout=120)
    shard_tars([str(folder / "samples")], str(folder / "shards"))
    return folder / "shards"


@pytest.fixture(scope="module", params=OWN)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """One template in one process and in every layout; and the checkpoint of step 4 resumed by another."""
    base = tmp_path_factory.mktemp(request.param)
    told = {**SETTINGS, "script": str(template_dir() / request.param / "train.py")}
    worlds = [(1, [case(base, "alone", ParallelSpec(), **told)])]
    for ranks in (2, 8):
        specs = {name: spec for name, spec in LAYOUTS.items() if spec.world == ranks}
        worlds.append((ranks, [case(base, name, spec, **told) for name, spec in specs.items()]))
    step_4 = base / "checkpoints" / "pp x fsdp x tp" / "step-00000004"
    worlds.append((2, [case(base, "resumed", LAYOUTS["fsdp"], resume=step_4, **told)]))
    return run_worlds(base, make_data(request.param, base), worlds)


def gaps(one: list[float], other: list[float]) -> list[float]:
    return [abs(a - b) / max(1.0, abs(a)) for a, b in zip(one, other, strict=True)]


def test_a_model_of_ones_own_trains_alike_in_every_layout(trained: dict[str, Result]) -> None:
    """Losses fall; every layout has those of one process to 1e-5 (5e-5 with tp) and its gradient; a
    checkpoint of eight ranks goes on as two ranks of FSDP."""
    alone = trained["alone"].losses
    assert alone[-1] < alone[0]
    for name in (*LAYOUTS, "resumed"):
        assert trained[name].error == "", name
        assert any(note.startswith("self-check") for note in trained[name].notes)
    for name, spec in LAYOUTS.items():
        assert max(gaps(alone, trained[name].losses)) < (5e-5 if spec.tp > 1 else 1e-5), name
    assert max(gaps(alone[4:], trained["resumed"].losses)) < 5e-5


LOOP = """
import torch
from torch import nn
from llmctl import worker

DATA = [(torch.full((2,), i / 8), torch.tensor([i / 4])) for i in range(8)]

def train(job):
    run = worker.prepare(
        job, model=lambda: nn.Linear(2, 1), loss=lambda out, want: (out - want).square().sum(), data=DATA
    )
    assert run.mesh is None and len(list(run.model.parameters())) == 2
    while run.goes_on and run.done < 3:
        run.step()
        run.note(f"my step {run.done}")
        if run.done == 2:
            run.save()
    return run.train()

if __name__ == "__main__":
    worker.main(train)
"""


def test_a_loop_of_ones_own_uses_the_pieces(tmp_path: Path) -> None:
    """`step`, `note`, `save` and `train` in one script; a setting of the decoder's ends it with exit 93."""
    (tmp_path / "mine.py").write_text(LOOP)
    mine = [sys.executable, str(tmp_path / "mine.py")]
    one = Host(base=tmp_path, corpus=tmp_path)
    recipe = replace(RECIPE, steps=5, global_batch=4, checkpoint_every=0)
    one._write_spec(0, recipe, 0, {})
    ((code, out, err),) = Job([_spawn(mine, one._env(0, 0, 0, 1, 0))]).results()
    assert code == 0, err
    assert "my step 3" in out
    assert one.committed() == ["step-00000002", "step-00000005"]
    assert len(one.losses()) == 5
    assert one.losses()[-1] < one.losses()[0]
    one._write_spec(0, replace(recipe, dropout=0.1), 0, {})
    ((code, _, err),) = Job([_spawn(mine, one._env(0, 0, 0, 1, 0))]).results()
    assert code == 93
    assert err.startswith("error: recipe.dropout is for the built-in decoder")


def losses(cluster: Cluster, run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "a/attempt-1/metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}


@pytest.mark.parametrize("name", OWN)
def test_a_template_trains_from_init_to_a_resume_on_two_hosts(name: str, tmp_path: Path) -> None:
    """`init`, data.py, `data shard`, `train` on one host; its checkpoint goes on over two hosts, alike."""
    cluster = Cluster(folder=tmp_path / "c")
    cluster.run("init", "--template", name, "--force")
    with (cluster.folder / ".llmctlignore").open("a") as ignore:
        ignore.write("/home/\n")  # this test's HOME, which is in use
    subprocess.run([sys.executable, "data.py", "samples"], cwd=cluster.folder, check=True, timeout=120)
    cluster.run("data", "shard", "samples", "shards", "--format", "tar")
    keys = {
        "recipe.precision": "fp32",
        "recipe.steps": 8,
        "recipe.global_batch": 8,
        "recipe.micro_batch": 4,
        "checkpoint.every": 4,
    }
    sets = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    cluster.run("train", "-j", "1x1", *sets)
    (first,) = (cluster.folder / "llmctl-runs").glob(f"{name}-*")
    shutil.rmtree(cluster.folder / "checkpoints" / "step-00000008")
    cluster.run("train", *sets)
    (second,) = set((cluster.folder / "llmctl-runs").glob(f"{name}-*")) - {first}
    before, after = losses(cluster, first), losses(cluster, second)
    assert sorted(after) == [5, 6, 7, 8]
    assert before[8] < before[1]
    assert max(gaps([before[step] for step in after], list(after.values()))) < 1e-5
