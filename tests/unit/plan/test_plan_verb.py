"""`llmctl plan` as a person meets it, on hosts that aren't there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmctl.controller.plan.auto import planned_recipe
from llmctl.controller.plan.plan import recipe_spec
from llmctl.errors import PreflightError
from tests.unit.controller.builders import facts, job

ROOT = Path(__file__).parents[3]
JOB = """
version: 1
name: big
data: {uri: "hdfs://nn/corpus"}
checkpoint: {uri: "hdfs://nn/kept"}
recipe: {model: {size: 3b}, global_batch: 64, micro_batch: 4, sequence_length: 1024}
"""


def llmctl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "job.yaml").write_text(JOB)
    return subprocess.run(
        [sys.executable, "-m", "llmctl", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def document(folder: Path, *arguments: str) -> Any:
    done = llmctl(folder, "plan", "-o", "json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_fake_hosts_need_no_hosts_file(tmp_path: Path) -> None:
    """Without hosts.yaml and without SSH: rows that fit, rows that don't, refused ones, and one choice."""
    told = document(tmp_path, "--fake-hosts", "2x4xL4-24GB")
    assert told["world"] == 8
    assert {row["verdict"] for row in told["layouts"]} == {"fits", "does not fit", "refused"}
    assert told["choice"]["verdict"] == "fits"
    assert all(row["why"] for row in told["layouts"] if row["verdict"] != "fits")
    for row in told["layouts"]:
        if row["memory"]:
            parts = [size for name, size in row["memory"].items() if name != "total"]
            assert sum(parts) == row["memory"]["total"]


def test_the_table_says_what_to_take_and_what_was_assumed(tmp_path: Path) -> None:
    """People read the choice, the line for the job, and every assumption."""
    done = llmctl(tmp_path, "plan", "--fake-hosts", "2x4xL4-24GB")
    assert done.returncode == 0, done.stderr
    assert "\ntake " in done.stdout
    assert "parallel: {" in done.stderr
    assert "100 Gbit/s between hosts, assumed" in done.stderr
    assert "vocabulary of 32000 is assumed" in done.stderr


def test_a_fleet_that_is_not_there_has_a_store(tmp_path: Path) -> None:
    """A job without `checkpoint.uri` is planned as if it had one, and told so: else only copies work."""
    done = llmctl(tmp_path, "plan", "--fake-hosts", "2x4xL4-24GB", "--set", "checkpoint.uri=null")
    assert done.returncode == 0, done.stderr
    assert "\ntake " in done.stdout
    assert "checkpoint.uri" in done.stderr


def test_an_unknown_device_is_one_line(tmp_path: Path) -> None:
    """Exit 2 and the known names, no traceback."""
    done = llmctl(tmp_path, "plan", "--fake-hosts", "2x4xH1000-80GB")
    assert done.returncode == 2
    assert "did you mean H100-80GB" in done.stderr
    assert "Traceback" not in done.stderr


def test_auto_gives_a_run_the_layout_that_the_table_marks() -> None:
    """`parallel: auto` on hosts with little memory: shards or stages, with settings that fit."""
    asked = job(
        parallel="auto",
        checkpoint={"uri": "/kept"},
        recipe={"model": {"size": "350m"}, "global_batch": 16, "micro_batch": 4, "sequence_length": 256},
    )
    hosts = {name: facts(name, memory=6 * 10**9) for name in ("a", "b", "c", "d")}
    planned = planned_recipe(asked, recipe_spec(asked), dict.fromkeys(hosts, 1), hosts, 32_000)
    assert planned.recipe.parallel is not None
    assert planned.recipe.parallel.world == 4
    assert planned.recipe.planned_memory is not None
    assert planned.recipe.planned_memory <= 0.9 * 6 * 10**9
    assert planned.why.startswith(planned.recipe.parallel.name)


def test_auto_that_fits_nowhere_stops_before_anything_starts() -> None:
    """The error names the nearest layout and what it needs."""
    asked = job(parallel="auto", recipe={"model": {"size": "7b"}})
    hosts = {"a": facts("a", memory=10**9)}
    with pytest.raises(PreflightError, match="nothing fits"):
        planned_recipe(asked, recipe_spec(asked), {"a": 1}, hosts, 32_000)


def test_a_fixed_layout_is_taken_as_it_is_and_measured_against() -> None:
    """Without `auto` nothing of the job changes; the run only learns what it should need."""
    asked = job(parallel={"dp_shard": 2}, recipe={"micro_batch": 2})
    hosts = {"a": facts("a")}
    planned = planned_recipe(asked, recipe_spec(asked), {"a": 2}, hosts, 257)
    assert planned.recipe.parallel is not None
    assert planned.recipe.parallel.dp_shard == 2
    assert planned.recipe.micro_batch == 2
    assert planned.recipe.planned_memory is not None
    assert planned.why == ""
    unknown = planned_recipe(asked, recipe_spec(asked), {"a": 2}, hosts, None)
    assert unknown.recipe.planned_memory is None
