"""The recipe as users meet it: started by torchrun on real text, with its log, metrics and errors."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.storage.corpus.shard import shard
from llmctl.wire.recipe import ModelSpec, OptimizerSpec
from tests.worker_kit import RECIPE, ROOT, Cluster, make_corpus, real_text

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="module")
def learned(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cluster, str]:
    """Two ranks under torchrun, bf16, TensorBoard on; and what torchrun printed."""
    cluster = Cluster(base=tmp_path_factory.mktemp("learned"), corpus=corpus, ranks=(2,))
    recipe = replace(
        RECIPE,
        steps=60,
        global_batch=16,
        micro_batch=8,
        sequence_length=64,
        precision="bf16",
        optimizer=OptimizerSpec(lr=1e-2, warmup_steps=5),
        tensorboard=True,
        checkpoint_every=0,
    )
    ((_, out, _),) = cluster.torchrun(recipe).check()
    return cluster, out


def test_it_learns_real_text(learned: tuple[Cluster, str]) -> None:
    """Sixty steps on argparse.py take the loss from ln(vocabulary) to well below 4 nats."""
    losses = learned[0].losses()
    assert losses[0] > 5
    assert losses[-1] < 3.5


def test_every_step_has_its_numbers(learned: tuple[Cluster, str]) -> None:
    """One line per step, in order, each complete; the token count is that of the global batch."""
    lines = learned[0].lines()
    assert [line["step"] for line in lines] == list(range(1, 61))
    for line in lines:
        assert line["tokens"] == 16 * 64
        assert line["total"] == 60
        assert line["tokens_per_s"] > 0
        assert line["grad_norm"] > 0
        assert 0 <= line["data_wait"] <= 1
        assert line["memory_bytes"] > 0


def test_the_log_is_for_people(learned: tuple[Cluster, str]) -> None:
    """First, every tenth and last step, the checkpoint, and why bf16: once, by rank 0 only."""
    out = learned[1]
    assert out.count("step 1/60") == out.count("step 60/60") == out.count("step 20/60") == 1
    assert "step 11/60" not in out
    assert "checkpoint 60 committed (" in out
    assert "bf16 (as set)" in out


def test_tensorboard_files_hold_the_curve(learned: tuple[Cluster, str]) -> None:
    """The event files carry every step's loss, although they were written beside the training."""
    pytest.importorskip("tensorboard")
    code = (
        "import sys; from tensorboard.backend.event_processing import event_accumulator as m;"
        "e = m.EventAccumulator(sys.argv[1]); e.Reload(); print(len(e.Scalars('train/loss')))"
    )
    folder = learned[0].run_dir().attempt(1).tensorboard
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "60"


def test_the_start_imports_nothing_heavy(corpus: Path, tmp_path: Path) -> None:
    """Up to its first step a rank imports neither torch._dynamo nor TensorBoard nor fsspec: seconds saved."""
    cluster = Cluster(base=tmp_path, corpus=corpus, env={"PYTHONPROFILEIMPORTTIME": "1"})
    recipe = replace(RECIPE, steps=2, checkpoint_every=0)
    ((_, _, err),) = cluster.start(recipe).check()
    imported = {
        line.rsplit("|", 1)[-1].strip() for line in err.splitlines() if line.startswith("import time:")
    }
    assert "torch" in imported
    assert not {"torch._dynamo", "tensorboard", "torchvision", "fsspec", "tokenizers"} & imported


LOSES_ITS_PEER = """
import sys
import torch.distributed as dist
from llmctl.worker.process import leave_with_traceback

sys.excepthook = leave_with_traceback
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
raise RuntimeError("connection closed by peer")
"""


def test_a_traceback_is_told_also_where_torch_has_a_hook_of_its_own() -> None:
    """init_process_group wraps sys.excepthook and keeps what it prints until it returns: ours never does."""
    done = subprocess.run(
        [sys.executable, "-c", LOSES_ITS_PEER],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.rstrip().endswith("RuntimeError: connection closed by peer")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": ModelSpec(size="giant")}, "model.size"),
        ({"model": ModelSpec(overrides={"heads": 7})}, "model.heads"),
        ({"model": ModelSpec(overrides={"colour": 1})}, "model.colour"),
        ({"precision": "fp8"}, "precision"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"sequence_length": 10**6}, "sample"),
    ],
)
def test_wrong_settings_are_one_line_and_not_retried(
    changes: dict[str, object], words: str, corpus: Path, tmp_path: Path
) -> None:
    """A setting that can't work: exit 93, the field named, no traceback, no checkpoint."""
    cluster = Cluster(base=tmp_path, corpus=corpus)
    ((code, _, err),) = cluster.start(replace(RECIPE, **changes)).results()  # type: ignore[arg-type]
    assert code == 93, err
    assert err.startswith("error: ")
    assert words in err
    assert "Traceback" not in err
    assert cluster.committed() == []


def test_data_that_is_not_there_is_named(corpus: Path, tmp_path: Path) -> None:
    """A wrong data.uri is answered with the place and the command that makes data."""
    cluster = Cluster(base=tmp_path, corpus=tmp_path / "nowhere")
    ((code, _, err),) = cluster.start(RECIPE).results()
    assert code == 93
    assert "nowhere" in err
    assert "llmctl data shard" in err


def test_a_tokenizer_file_travels_with_the_checkpoint(tmp_path: Path) -> None:
    """Sharded with a Hugging Face tokenizer, trained, and sampled from the checkpoint folder alone."""
    tokenizers = pytest.importorskip("tokenizers")
    (tmp_path / "text.txt").write_bytes(real_text())
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train(
        [str(tmp_path / "text.txt")], vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False
    )
    bpe.save(str(tmp_path / "tokenizer.json"))
    corpus = tmp_path / "corpus"
    shard([str(tmp_path / "text.txt")], str(corpus), tokenizer=str(tmp_path / "tokenizer.json"), workers=1)
    cluster = Cluster(base=tmp_path, corpus=corpus)
    cluster.train(RECIPE)
    shutil.rmtree(corpus)
    folder = cluster.checkpoints() / "step-00000008"
    command = [
        sys.executable,
        "-m",
        "llmctl.worker.sample",
        f"--checkpoint={folder}",
        "--prompt=import argparse",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("import argparse")


def test_damaged_data_stops_the_run(corpus: Path, tmp_path: Path) -> None:
    """A shard whose bytes are not the manifest's is never trained on: exit 93, the file named."""
    mine = make_corpus(tmp_path / "corpus")
    for path in mine.glob("*.bin"):
        path.write_bytes(b"\xff\x00" + path.read_bytes()[2:])
    ((code, _, err),) = Cluster(base=tmp_path, corpus=mine).start(RECIPE).results()
    assert code == 93
    assert ".bin" in err


def test_a_loss_that_explodes_names_its_step(corpus: Path, tmp_path: Path) -> None:
    """An absurd learning rate ends the run with exit 93 and the step; no broken checkpoint is committed."""
    wild = replace(RECIPE, optimizer=OptimizerSpec(lr=1e30, warmup_steps=0), checkpoint_every=1)
    cluster = Cluster(base=tmp_path, corpus=corpus)
    ((code, _, err),) = cluster.start(wild).results()
    assert code == 93
    assert err.startswith("error: step ")
    assert "learning rate" in err
    assert len(cluster.committed()) <= 1


def test_without_a_run_directory_it_says_how_to_start(tmp_path: Path) -> None:
    """Started by hand, outside a run, it points to `llmctl train`."""
    done = subprocess.run(
        [sys.executable, "-m", "llmctl.worker.train"],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 93
    assert "llmctl train" in done.stderr
