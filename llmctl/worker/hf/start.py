"""Training that begins from weights that are there: opening them, checking that they fit, and giving each
rank its part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from llmctl.errors import ConfigError
from llmctl.storage.corpus.tokenizer import BYTES
from llmctl.storage.files import open_store
from llmctl.wire.codec import encode
from llmctl.wire.manifests import BaseWeights, CheckpointManifest, ShardManifest
from llmctl.wire.recipe import LoraSpec, RecipeSpec
from llmctl.worker.hf.folder import TOKENIZER
from llmctl.worker.hf.vocabulary import check_vocabulary
from llmctl.worker.hf.weights import WEIGHTS_ONLY, Weights, open_weights
from llmctl.worker.lora import is_adapter
from llmctl.worker.optim import local
from llmctl.worker.session import Session

STAGE = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The weights that a training begins from.

    Attributes:
        base: what a checkpoint of adapters must remember of them; None where all weights are trained.
    """

    weights: Weights
    base: BaseWeights | None

    @torch.no_grad()
    def give(self, model: nn.Module) -> None:
        """Fill what this rank holds of `model`, adapters aside: one whole tensor in memory at a time.

        Raises:
            IntegrityError: the files are not what they should be.
        """
        named = {name: p for name, p in model.named_parameters() if not is_adapter(name)}
        for name, whole in self.weights.items(list(named)):
            parameter = named[name]
            if hasattr(parameter, "to_local"):
                from llmctl.worker.parallel.initial import part_of

                whole = part_of(whole, parameter)  # type: ignore[arg-type]  # noqa: PLW2901
            local(parameter).copy_(whole)


@contextmanager
def open_start(
    recipe: RecipeSpec, session: Session, corpus: ShardManifest, corpus_uri: str | None
) -> Iterator[Start | None]:
    """What `recipe.model.source` names, or None where training begins from random weights. All ranks call it.

    Raises:
        LlmctlError: it can't be read, our decoder can't be it, or the corpus is of another vocabulary; on all
            ranks.
    """
    if recipe.model.source is None:
        if recipe.lora is not None:
            raise ConfigError("lora: there is no model to adapt", hint="set recipe.model.from", stage=STAGE)
        yield None
        return
    source = recipe.model.source
    with ExitStack() as stack:
        opened: list[Weights] = []
        session.together(lambda: opened.append(stack.enter_context(open_weights(source))))
        weights = opened[0]
        session.together(lambda: _check(weights, corpus, corpus_uri) if session.is_first else None)
        yield Start(weights=weights, base=None if recipe.lora is None else _base(weights, session))


def _base(weights: Weights, session: Session) -> BaseWeights:
    found: list[BaseWeights] = []

    def look() -> None:
        if session.is_first:
            found.append(BaseWeights(uri=weights.where, files=weights.fingerprint()))

    session.together(look)
    return session.gather(found)[0][0]


def _check(weights: Weights, corpus: ShardManifest, corpus_uri: str | None) -> None:
    theirs = None
    if corpus.tokenizer != BYTES and corpus.tokenizer_file is not None and corpus_uri is not None:
        theirs = open_store(corpus_uri).read_bytes(corpus.tokenizer_file.path)
    check_vocabulary(
        weights.config,
        weights.carried.get(TOKENIZER),
        corpus=theirs,
        name=corpus.tokenizer,
        vocab_size=corpus.vocab_size,
    )


def check_resume(saved: CheckpointManifest, lora: LoraSpec | None, start: Start | None) -> None:
    """Refuse to go on from a checkpoint whose adapters are others, or sit on another base model.

    Raises:
        ConfigError: says what differs.
    """
    hint = "set checkpoint.uri to another folder, or resume: false"
    if saved.data.get(WEIGHTS_ONLY):
        told = "the checkpoint there was imported: it has weights, but no optimizer moments to go on with"
        raise ConfigError(told, hint="name it in recipe.model.from, and another checkpoint.uri", stage=STAGE)
    before, now = saved.recipe.get("lora"), encode(lora)
    if before != now:
        raise ConfigError(
            f"the checkpoint was trained with lora {before}, now it is {now}", hint=hint, stage=STAGE
        )
    if saved.base is None or start is None or start.base is None:
        return
    hashes = {entry.path: entry.sha256 for entry in start.base.files}
    differs = [entry.path for entry in saved.base.files if hashes.get(entry.path) != entry.sha256]
    if differs:
        raise ConfigError(
            f"{start.base.uri}: {differs[0]} is not what the checkpoint's adapters were trained on",
            hint=hint,
            stage=STAGE,
        )
