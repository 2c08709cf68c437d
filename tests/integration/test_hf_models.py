"""Hugging Face models in and out: the same logits as `transformers`, whatever the family and the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmctl.errors import ConfigError, IntegrityError, NotFoundError
from llmctl.storage.files import open_store
from llmctl.wire.codec import loads
from llmctl.wire.manifests import COMMIT_MARKER, CheckpointManifest
from llmctl.wire.parallel import ParallelSpec
from llmctl.wire.recipe import LoraSpec, ModelSpec
from llmctl.worker.hf.export import export_model
from llmctl.worker.hf.folder import open_folder
from llmctl.worker.hf.weights import open_weights
from tests.hf_kit import FAMILIES, checked, convert, difference, library, loaded, ours, run, tiny, tokens
from tests.worker_kit import RECIPE, Cluster, make_corpus

EXACT = 1e-4
"""Largest difference of logits that counts as equal, in fp32."""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_every_family_gives_the_same_logits(tmp_path: Path, family: str) -> None:
    """What transformers saved is the same function in our decoder, with a window or without."""
    theirs = tiny(family, tmp_path / "hf")
    assert difference(ours(tmp_path / "hf"), theirs, tokens()) < EXACT


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_every_family_survives_the_whole_way(tmp_path: Path, family: str) -> None:
    """Sharded folder, our checkpoint, another number of files, sharded folder: the same logits again."""
    theirs = tiny(family, tmp_path / "hf", shard_size="30KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    run("import", "--files", "3", tmp_path / "hf", tmp_path / "ours")
    run("reshard", "--files", "2", tmp_path / "ours", tmp_path / "again")
    run("export", "--shard-bytes", "30000", tmp_path / "again", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    again = loaded(tmp_path / "out")
    assert type(again) is type(theirs)
    assert difference(again, theirs, tokens()) < EXACT


def test_half_precision_weights_are_read_as_they_are_and_written_on_request(tmp_path: Path) -> None:
    """bf16 in a folder becomes fp32 exactly; an export in bf16 is half the size and the same numbers."""
    theirs = tiny("llama", tmp_path / "hf").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "half")
    run("import", tmp_path / "half", tmp_path / "ours")
    run("export", "--dtype", "bf16", tmp_path / "ours", tmp_path / "out")
    again = library("transformers").AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == torch.bfloat16
    pairs = zip(again.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(mine, their) for mine, their in pairs)


def test_a_model_in_another_store_needs_no_copy_on_this_disk(tmp_path: Path) -> None:
    """Tensors are read from and written to any store, by ranges."""
    theirs = tiny("qwen2", tmp_path / "hf")
    store = open_store("memory://models/hf")
    for path in (tmp_path / "hf").iterdir():
        store.put_file(path, path.name)
    with open_weights("memory://models/hf") as weights:
        export_model(weights, "memory://models/out", dtype="fp32", shard_bytes=30_000)
    for file in open_store("memory://models/out").list():
        (tmp_path / file.path).write_bytes(open_store("memory://models/out").read_bytes(file.path))
    assert difference(loaded(tmp_path), theirs, tokens()) < EXACT


@pytest.mark.torch
def test_a_trained_model_of_ours_is_a_model_of_theirs(tmp_path: Path) -> None:
    """A run from random weights on bytes exports as a folder whose tokenizer and model transformers has."""
    cluster = Cluster(base=tmp_path, corpus=make_corpus(tmp_path / "corpus"))
    cluster.train(RECIPE)
    run("export", cluster.checkpoints(), tmp_path / "out")
    model = loaded(tmp_path / "out")
    assert difference(ours(cluster.checkpoints()), model, tokens()) < EXACT
    tokenizer = library("transformers").AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "def größe():\n\treturn '…'\x00"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == 256


@pytest.mark.torch
@pytest.mark.parametrize("ranks", [(1,), (1, 1)])
def test_training_starts_from_their_weights(tmp_path: Path, ranks: tuple[int, ...]) -> None:
    """On one rank and on two hosts: the loss falls, and what is exported is their model, but trained."""
    theirs = tiny("qwen3", tmp_path / "hf", initializer_range=0.02)
    cluster = Cluster(base=tmp_path, corpus=make_corpus(tmp_path / "corpus"), ranks=ranks)
    cluster.train(replace(RECIPE, model=ModelSpec(source=str(tmp_path / "hf"))))
    losses = cluster.losses()
    assert losses[-1] < losses[0]
    run("export", cluster.checkpoints(), tmp_path / "out")
    again = loaded(tmp_path / "out")
    assert again.config.max_position_embeddings == theirs.config.max_position_embeddings
    assert difference(again, theirs, tokens()) > 10 * EXACT


@pytest.mark.torch
@pytest.mark.parametrize(
    ("parallel", "lora"),
    [
        (ParallelSpec(dp_shard=2), None),
        (ParallelSpec(dp_shard=2), LoraSpec(rank=4)),
        (ParallelSpec(tp=2), None),
        (ParallelSpec(pp=2), None),
    ],
)
def test_their_weights_start_any_layout_alike(
    tmp_path: Path, parallel: ParallelSpec, lora: LoraSpec | None
) -> None:
    """Each rank takes its part of the same weights: the losses are those of one process."""
    tiny("llama", tmp_path / "hf", initializer_range=0.02)
    source = ModelSpec(source=str(tmp_path / "hf"))
    recipe = replace(RECIPE, steps=3, checkpoint_every=0, micro_batch=1, model=source, lora=lora)
    corpus = make_corpus(tmp_path / "corpus")
    alone = Cluster(base=tmp_path / "alone", corpus=corpus)
    alone.train(recipe)
    shared = Cluster(base=tmp_path / "shared", corpus=corpus, ranks=(2,))
    shared.train(replace(recipe, parallel=parallel))
    assert shared.losses() == pytest.approx(alone.losses(), abs=5e-5)
    # What two ranks saved loads as one model again.
    assert difference(ours(shared.checkpoints()), ours(alone.checkpoints()), tokens()) < 10 * EXACT


@pytest.mark.torch
def test_an_imported_checkpoint_is_to_begin_from_not_to_resume(tmp_path: Path) -> None:
    """It has no optimizer moments, so it can't be resumed; as `from` it works like the folder itself."""
    tiny("llama", tmp_path / "hf", initializer_range=0.02)
    run("import", tmp_path / "hf", tmp_path / "place")
    corpus = make_corpus(tmp_path / "corpus")
    recipe = replace(RECIPE, steps=2, checkpoint_every=0, model=ModelSpec(source=str(tmp_path / "place")))
    resuming = Cluster(base=tmp_path / "a", corpus=corpus, checkpoint_uri=str(tmp_path / "place"))
    [(code, _, stderr)] = resuming.start(recipe).results()
    assert code == 93
    assert "recipe.model.from" in stderr
    starting, plain = (Cluster(base=tmp_path / name, corpus=corpus) for name in "bc")
    starting.train(recipe)
    plain.train(replace(recipe, model=ModelSpec(source=str(tmp_path / "hf"))))
    assert starting.losses() == plain.losses()


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
def test_adapters_alone_learn_and_merge(tmp_path: Path) -> None:
    """LoRA on two hosts: the checkpoint holds no base weight, the base is untouched, what is exported is base
    plus adapters, and peft makes the same model of the adapters alone."""
    theirs = tiny("llama", tmp_path / "hf", initializer_range=0.02)
    recipe = replace(RECIPE, model=ModelSpec(source=str(tmp_path / "hf")), lora=LoraSpec(rank=4))
    cluster = Cluster(base=tmp_path, corpus=make_corpus(tmp_path / "corpus"), ranks=(1, 1))
    cluster.train(recipe)
    losses = cluster.losses()
    assert losses[-1] < losses[0]
    folder = cluster.checkpoints() / cluster.committed()[-1]
    manifest = loads(CheckpointManifest, (folder / COMMIT_MARKER).read_bytes())
    assert manifest.base is not None
    assert manifest.base.uri == str(tmp_path / "hf")
    run("export", folder, tmp_path / "out")
    run("export", "--adapter-only", folder, tmp_path / "adapter")
    merged = loaded(tmp_path / "out")
    assert difference(ours(folder), merged, tokens()) < EXACT
    assert difference(theirs, merged, tokens()) > 10 * EXACT
    adapted = library("peft").PeftModel.from_pretrained(loaded(tmp_path / "hf"), str(tmp_path / "adapter"))
    assert difference(adapted, merged, tokens()) < EXACT


@pytest.mark.torch
def test_adapters_go_on_from_a_checkpoint_as_if_never_stopped(tmp_path: Path) -> None:
    """Base from its folder, adapters and moments from the checkpoint: the same losses as without the stop."""
    tiny("llama", tmp_path / "hf", initializer_range=0.02)
    recipe = replace(RECIPE, model=ModelSpec(source=str(tmp_path / "hf")), lora=LoraSpec(rank=4))
    corpus = make_corpus(tmp_path / "corpus")
    whole = Cluster(base=tmp_path / "whole", corpus=corpus)
    whole.train(recipe)
    parts = Cluster(base=tmp_path / "parts", corpus=corpus, checkpoint_uri=str(tmp_path / "shared"))
    parts.train(replace(recipe, steps=8, checkpoint_every=4))
    for path in (tmp_path / "shared").glob("step-00000008/*"):
        path.unlink()
    again = replace(parts, attempt=2)
    again.train(recipe)
    expected = whole.losses()
    assert again.losses() == pytest.approx(expected[4:], abs=1e-6)


@pytest.mark.torch
def test_another_base_under_the_same_adapters_is_refused(tmp_path: Path) -> None:
    """Adapters on weights that they were not trained on would be a model that nobody has ever measured."""
    tiny("llama", tmp_path / "hf")
    recipe = replace(RECIPE, steps=1, model=ModelSpec(source=str(tmp_path / "hf")), lora=LoraSpec(rank=4))
    cluster = Cluster(base=tmp_path, corpus=make_corpus(tmp_path / "corpus"))
    cluster.train(recipe)
    (tmp_path / "hf").rename(tmp_path / "moved")
    gone = convert("export", cluster.checkpoints(), tmp_path / "out")
    assert gone.returncode == 102
    assert "--base" in gone.stderr
    run("export", "--base", tmp_path / "moved", cluster.checkpoints(), tmp_path / "out")
    theirs = tiny("llama", tmp_path / "hf")
    with torch.no_grad():
        theirs.lm_head.weight[0, 0] += 1
    theirs.save_pretrained(tmp_path / "hf")
    other = convert("export", cluster.checkpoints(), tmp_path / "out2")
    assert other.returncode == 21
    assert "model.safetensors differs" in other.stderr


@pytest.mark.torch
def test_a_corpus_of_another_tokenizer_is_refused_before_training(tmp_path: Path) -> None:
    """Ids that mean something else to the model teach it nonsense: exit code 93, and what to do."""
    tiny("llama", tmp_path / "hf")
    document = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(document))
    cluster = Cluster(base=tmp_path, corpus=make_corpus(tmp_path / "corpus"))
    [(code, _, stderr)] = cluster.start(
        replace(RECIPE, model=ModelSpec(source=str(tmp_path / "hf")))
    ).results()
    assert code == 93
    assert "single bytes" in stderr
    assert "--tokenizer" in stderr


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """Missing, unexpected and mis-shaped tensors are told together, layers as ranges."""
    safetensors = library("safetensors.torch")
    tiny("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.load_file(path)
    for layer in (0, 1):
        del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = torch.ones(31)
    tensors["visual.patch.weight"] = torch.ones(3)
    safetensors.save_file(tensors, path)
    with pytest.raises(IntegrityError) as caught:
        open_folder(str(tmp_path)).check()
    for told in (
        "missing model.layers.{0-1}.mlp.up_proj.weight",
        "unexpected visual.patch.weight",
        "model.norm.weight is [31] there, [32]",
    ):
        assert told in caught.value.message


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    """A download that broke off is noticed by the header, before any weight is used."""
    tiny("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="cut short"):
        open_folder(str(tmp_path)).check()


def test_what_is_no_model_is_told_from_what_is_one_in_another_format(tmp_path: Path) -> None:
    """An empty folder, a pickled model and a missing shard each get their own answer."""
    with pytest.raises(NotFoundError, match=r"holds no config\.json"):
        open_folder(str(tmp_path))
    tiny("llama", tmp_path, shard_size="30KB")
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(NotFoundError, match=r"listed in model\.safetensors\.index\.json"):
        open_folder(str(tmp_path)).check()
    for path in tmp_path.glob("model*"):
        path.unlink()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin"):
        open_folder(str(tmp_path))


def test_an_export_never_mixes_with_what_was_there(tmp_path: Path) -> None:
    """A folder that holds something is refused; with --overwrite no shard of the old model stays."""
    tiny("llama", tmp_path / "hf")
    checked("export", "--shard-bytes", "30000", tmp_path / "hf", tmp_path / "out")
    refused = convert("export", tmp_path / "hf", tmp_path / "out")
    assert refused.returncode == 2
    assert "not empty" in refused.stderr
    checked("export", "--overwrite", tmp_path / "hf", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("model*")] == ["model.safetensors"]


def test_a_damaged_checkpoint_is_never_exported(tmp_path: Path) -> None:
    """One flipped bit is found by the commit marker's hashes, and nothing is written."""
    tiny("llama", tmp_path / "hf")
    checked("import", tmp_path / "hf", tmp_path / "ours")
    path = next((tmp_path / "ours").glob("*/*.distcp"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = convert("export", tmp_path / "ours", tmp_path / "out")
    assert done.returncode == 21
    assert path.name in done.stderr
    assert not (tmp_path / "out" / "config.json").exists()
