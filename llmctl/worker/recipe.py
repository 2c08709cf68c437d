"""The built-in recipe as a subject of training: a decoder on token shards, from random or given weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmctl.storage.corpus.reader import Reader
from llmctl.wire.codec import encode
from llmctl.wire.layout import RunLayout
from llmctl.wire.manifests import BaseWeights, CheckpointManifest
from llmctl.wire.specs import Peer
from llmctl.worker.checkpoint.load import Found, check_model
from llmctl.worker.consumption import Consumption, open_consumption
from llmctl.worker.data import Batches, open_corpus, tokenizer_files
from llmctl.worker.hf.folder import shapes
from llmctl.worker.hf.start import Start, check_resume, open_start
from llmctl.worker.job import Job
from llmctl.worker.lora import adapter_shapes
from llmctl.worker.metrics import human_count
from llmctl.worker.model.config import ModelConfig, count_parameters
from llmctl.worker.model.sizes import model_config
from llmctl.worker.objective import Objective
from llmctl.worker.parallel.decoder import DecoderArchitecture
from llmctl.worker.parallel.layout import Layout
from llmctl.worker.trainer import Setup, Training, assemble, changed_settings, check_recipe


def build(job: Job) -> Training:
    """The training that the job's recipe describes.

    Raises:
        LlmctlError: settings, data or checkpoints are not fit.
    """
    check_recipe(job.recipe)
    reader = open_corpus(job.spec)
    first = job.spec.corpora[0].uri  # those of a mixture have one tokenizer
    with open_start(job.recipe, job.session, reader.manifest, first) as start:
        config = start.weights.config if start else model_config(job.recipe.model, reader.manifest.vocab_size)
        return assemble(job, Recipe(job=job, reader=reader, start=start, config=config))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """See `trainer.Subject`.

    Attributes:
        start: the weights that training begins from; None: random ones.
    """

    job: Job
    reader: Reader
    start: Start | None
    config: ModelConfig

    @property
    def architecture(self) -> DecoderArchitecture:
        return DecoderArchitecture(self.config)

    @property
    def model_info(self) -> dict[str, object]:
        return encode(self.config)  # type: ignore[no-any-return]

    @property
    def data_info(self) -> dict[str, object]:
        corpus = self.reader.manifest
        return {
            "tokenizer": corpus.tokenizer,
            "tokenizer_file": encode(corpus.tokenizer_file),
            "vocab_size": corpus.vocab_size,
            "eos": corpus.eos,
            "tokens": corpus.tokens,
            "parameters": count_parameters(self.config),
            "mix": encode(self.job.spec.data_mix),
        }

    @property
    def base(self) -> BaseWeights | None:
        return self.start.base if self.start else None

    @property
    def learning(self) -> int:
        lora = self.job.recipe.lora
        if lora is None:
            return count_parameters(self.config)
        return sum(rows * columns for rows, columns in adapter_shapes(shapes(self.config), lora).values())

    def introduction(self, job: Job) -> str:
        """See Subject."""
        recipe = job.recipe
        adapted = "" if recipe.lora is None else f" ({human_count(self.learning)} in adapters)"
        shares = f", by speed: {' + '.join(map(str, recipe.shares))}" if recipe.shares else ""
        return (
            f"{recipe.model.source or recipe.model.size}: "
            f"{human_count(count_parameters(self.config))} parameters{adapted}, {{ranks}}, "
            f"batch {recipe.global_batch} x {recipe.sequence_length} tokens{shares}"
        )

    def objective(self, layout: Layout) -> Objective:
        """See Subject."""
        return Objective(self.job.recipe.aggregation, loss_parallel=layout.loss_parallel)

    def check_resume(self, found: Found) -> None:
        """See Subject."""
        check_model(found, self.model_info)
        check_resume(found.manifest, self.job.recipe.lora, self.start)

    def give(self, setup: Setup, found: Found | None) -> None:
        """See Subject."""
        start, session = self.start, self.job.session
        if start is None or not (found is None or self.job.recipe.lora is not None):
            return
        # Whole copies get rank 0's in `align`: one rank reads, not all.
        reads = session.is_first or not setup.layout.spec.is_replicas
        session.together(lambda: start.give(setup.model) if reads else None)

    def changed_order(self, saved: CheckpointManifest) -> list[str]:
        """See Subject."""
        changed = changed_settings(saved, self.job.recipe, ("seed", "global_batch", "sequence_length"))
        if saved.data.get("mix", []) != encode(self.job.spec.data_mix):
            changed.append("the mixture")
        tokens = self.reader.manifest.tokens
        return changed + (["the corpus"] if saved.data.get("tokens", tokens) != tokens else [])

    def batches(self, device: torch.device, rank: int, ranks: int, start_step: int) -> Batches:
        """See Subject."""
        weights = [source.weight for source in self.job.spec.corpora]
        return Batches(
            self.reader, self.job.recipe, device, rank, ranks, weights=weights, start_step=start_step
        )

    def consumption(self, setup: Setup, found: Found | None) -> Consumption | None:
        """The journal of one data rank, kept by the rank whose loss counts; its tp and pp peers keep none."""
        job, layout = self.job, setup.layout
        told = job.session.gather((job.session.host, layout.data_rank if layout.counts else None))
        hosts = sorted((rank, host) for host, rank in told if rank is not None)
        if not layout.counts:
            return None
        return open_consumption(
            job.spec,
            job.recipe,
            self.reader,
            rank=layout.data_rank,
            ranks=layout.data_ranks,
            peers=tuple(Peer(host, "", number, 1, rank) for number, (rank, host) in enumerate(hosts)),
            path=RunLayout(job.run_dir).attempt(job.spec.attempt).consumed(layout.data_rank),
            found=found.manifest if found else None,
        )

    def extra_files(self) -> dict[str, bytes]:
        """The corpus' tokenizer, and what came with the first weights."""
        carried = self.start.weights.carried if self.start else {}
        return {**carried, **tokenizer_files(self.job.spec, self.reader.manifest)}
