"""The proof on real weights: SmolLM2-135M loaded, fine-tuned by adapters on real text, merged, exported."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from llmctl.storage.corpus.shard import shard
from llmctl.wire.recipe import LoraSpec, ModelSpec, OptimizerSpec
from llmctl.worker.generate import Sampling
from llmctl.worker.hf.export import export_model
from llmctl.worker.hf.weights import open_weights
from llmctl.worker.sample import sample
from tests.hf_kit import difference, library, loaded, ours, run
from tests.lab import smollm2
from tests.worker_kit import RECIPE, Cluster, real_text

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

EXACT = 1e-4
TEXT_BYTES = 3000
QUESTION = "The capital of France is"


@pytest.fixture(scope="module")
def model() -> Path:
    """The folder of SmolLM2-135M-Instruct in bf16."""
    library("transformers")
    library("gguf")
    if not smollm2.folder().is_dir():
        # A process of its own: what it imports and warns of is not the tests' business.
        subprocess.run(smollm2.COMMAND, check=True, timeout=500)
    return smollm2.folder()


def test_real_weights_in_and_out(model: Path, tmp_path: Path) -> None:
    """Loaded, they are the model that transformers has; exported in three files and fp32, they still are; and
    the model knows what it knew."""
    theirs = loaded(model)
    tokenizer = library("transformers").AutoTokenizer.from_pretrained(model)
    ids = tokenizer(real_text(600).decode(), return_tensors="pt")["input_ids"]
    assert difference(ours(model), theirs, ids) < EXACT
    with open_weights(str(model)) as weights:
        written = export_model(weights, str(tmp_path / "out"), dtype="fp32", shard_bytes=250_000_000)
    assert len([name for name in written.files if name.startswith("model-")]) == 3
    assert written.parameters == 134_515_008
    again = loaded(tmp_path / "out")
    assert difference(again, theirs, ids) < EXACT
    prompt = tokenizer(QUESTION, return_tensors="pt")
    answer = again.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(answer[0]).endswith("Paris")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
def test_adapters_on_real_weights_and_real_text(model: Path, tmp_path: Path) -> None:
    """A few steps of LoRA on source code: the text becomes likelier, a checkpoint of a tenth of the base's
    size samples by itself, and the merged export is the adapted model, for transformers and for peft."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(real_text(TEXT_BYTES))
    tokenizer_file = str(model / "tokenizer.json")
    shard([str(tmp_path / "text")], str(tmp_path / "corpus"), tokenizer=tokenizer_file, workers=1)
    cluster = Cluster(base=tmp_path, corpus=tmp_path / "corpus")
    recipe = replace(
        RECIPE,
        steps=6,
        global_batch=2,
        micro_batch=2,
        sequence_length=64,
        checkpoint_every=0,
        model=ModelSpec(source=str(model)),
        lora=LoraSpec(rank=8),
        optimizer=OptimizerSpec(lr=5e-4, warmup_steps=1, weight_decay=0.0),
    )
    cluster.train(recipe)
    folder = cluster.checkpoints() / cluster.committed()[-1]
    size = sum(path.stat().st_size for path in folder.glob("*.distcp"))
    assert size < 0.13 * (model / "model.safetensors").stat().st_size

    run("export", folder, tmp_path / "merged")
    run("export", "--adapter-only", folder, tmp_path / "adapter")
    base, merged = loaded(model), loaded(tmp_path / "merged")
    tokenizer = library("transformers").AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = tokenizer(real_text(TEXT_BYTES).decode(), return_tensors="pt")["input_ids"][:, :512]
    assert loss(merged, ids) < loss(base, ids) - 0.02
    adapted = library("peft").PeftModel.from_pretrained(loaded(model), str(tmp_path / "adapter"))
    assert difference(adapted, merged, ids) < EXACT
    text = sample(folder, QUESTION, Sampling(max_new=2, temperature=0.0))
    assert text.startswith(QUESTION + " Paris")


@torch.no_grad()
def loss(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """Mean loss per token, nats."""
    logits = model(ids).logits[:, :-1]
    return float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
