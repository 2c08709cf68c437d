"""The recipe put together: from a NodeSpec to a trained, saved model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from llmctl.errors import ConfigError
from llmctl.storage.corpus.reader import Reader
from llmctl.wire.codec import encode
from llmctl.wire.layout import RunLayout
from llmctl.wire.manifests import CheckpointManifest, ShardManifest
from llmctl.wire.recipe import RecipeSpec
from llmctl.wire.specs import DataSource, NodeSpec, Peer
from llmctl.worker.checkpoint.load import Found, check_model, find_latest, restore
from llmctl.worker.checkpoint.place import Place, check_room, open_place
from llmctl.worker.checkpoint.save import Saver
from llmctl.worker.checkpoint.setup import open_saver
from llmctl.worker.checkpoint.state import training_tensors
from llmctl.worker.consumption import Consumption, open_consumption
from llmctl.worker.data import Batches, first_batch, open_corpus, tokenizer_files
from llmctl.worker.hf.folder import shapes
from llmctl.worker.hf.start import Start, check_resume, open_start
from llmctl.worker.lora import adapter_shapes
from llmctl.worker.metrics import Metrics, human_count
from llmctl.worker.model.config import ModelConfig, count_parameters
from llmctl.worker.model.sizes import model_config
from llmctl.worker.optim import AdamW
from llmctl.worker.parallel.layout import Layout, open_layout
from llmctl.worker.precision import MixedPrecision, bf16_is_fast, choose_precision
from llmctl.worker.selfcheck import SelfCheck
from llmctl.worker.session import Session
from llmctl.worker.step import Stepper, StepResult
from llmctl.worker.stop import StopSignal

STATE_BYTES = 12
"""Bytes per parameter in a checkpoint: the fp32 weight and Adam's two moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Everything that a training loop works with; `done` steps lie behind it."""

    recipe: RecipeSpec
    session: Session
    model: nn.Module
    optimizer: AdamW
    stepper: Stepper
    batches: Batches
    consumption: Consumption | None
    saver: Saver
    metrics: Metrics
    stop: StopSignal
    grace_s: float
    done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A step whose numbers have not been read yet."""

    step: int
    lr: float
    wait_s: float
    result: StepResult


def check_recipe(recipe: RecipeSpec) -> None:
    """Refuse numbers that can't mean anything.

    Raises:
        ConfigError: names the field.
    """
    lowest = {
        "steps": 1,
        "global_batch": 1,
        "micro_batch": 1,
        "sequence_length": 1,
        "keep": 1,
        "log_every": 1,
    }
    for name, limit in lowest.items():
        if getattr(recipe, name) < limit:
            raise ConfigError(f"recipe.{name}: must be at least {limit}, not {getattr(recipe, name)}")
    if len(recipe.optimizer.betas) != 2:
        raise ConfigError(f"recipe.optimizer.betas: needs two numbers, not {len(recipe.optimizer.betas)}")


def build(
    spec: NodeSpec, recipe: RecipeSpec, session: Session, run_dir: str, metrics: Metrics, stop: StopSignal
) -> Training:
    """Open data and checkpoints, make the model, and resume where there is something to resume.

    Raises:
        LlmctlError: settings, data or checkpoints are not fit.
    """
    check_recipe(recipe)
    reader = open_corpus(spec)
    first = spec.corpora[0].uri  # those of a mixture have one tokenizer
    with open_start(recipe, session, reader.manifest, first) as start:
        return _build(spec, recipe, session, run_dir, metrics, stop, reader, start)


def _build(
    spec: NodeSpec,
    recipe: RecipeSpec,
    session: Session,
    run_dir: str,
    metrics: Metrics,
    stop: StopSignal,
    reader: Reader,
    start: Start | None,
) -> Training:
    """`build`, with the weights open that training begins from, if there are any."""
    config = start.weights.config if start else model_config(recipe.model, reader.manifest.vocab_size)
    precision = _choose_precision(recipe, session)
    layout = open_layout(recipe, session)
    _introduce(metrics, recipe, session, config, precision, layout)
    model = layout.model(config, recipe, precision)
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = AdamW(learning, recipe.optimizer)
    place = open_place(session, spec, run_dir)
    found = _start_state(
        spec, recipe, session, place, config, layout, model, optimizer, metrics, reader.manifest, start
    )
    done = found.step if found else 0
    weights = [source.weight for source in spec.corpora]

    def batches(rank: int, ranks: int) -> Batches:
        return Batches(reader, recipe, session.device, rank, ranks, weights=weights, start_step=done)

    stepper = make_stepper(layout, recipe, session, model, optimizer, precision)
    if recipe.self_check:
        check = SelfCheck(
            layout=layout,
            session=session,
            model=model,
            stepper=stepper,
            config=config,
            recipe=recipe,
            precision=precision,
            batch_of=lambda rank, ranks: first_batch(batches(rank, ranks)),
        )
        metrics.note(check.run().line())
    template = _marker_template(spec, recipe, session, config, reader.manifest)
    return Training(
        recipe=recipe,
        session=session,
        model=model,
        optimizer=optimizer,
        stepper=stepper,
        batches=batches(layout.data_rank, layout.data_ranks),
        consumption=_open_consumption(spec, recipe, session, layout, reader, run_dir, found),
        saver=open_saver(
            spec,
            recipe,
            session,
            place,
            metrics,
            run_dir=run_dir,
            tensors=training_tensors(model, optimizer),
            whole_copies=layout.spec.is_replicas,
            start=done,
            template=replace(template, base=start.base if start else None),
            extra_files=_extra_files(spec, reader.manifest, start) if session.leader else {},
        ),
        metrics=metrics,
        stop=stop,
        grace_s=spec.grace_s,
        done=done,
    )


def _open_consumption(
    spec: NodeSpec,
    recipe: RecipeSpec,
    session: Session,
    layout: Layout,
    reader: Reader,
    run_dir: str,
    found: Found | None,
) -> Consumption | None:
    """The journal of one data rank, kept by the one rank whose loss counts; its tp and pp peers keep none."""
    told = session.gather((session.host, layout.data_rank if layout.counts else None))
    hosts = sorted((rank, host) for host, rank in told if rank is not None)
    if not layout.counts:
        return None
    return open_consumption(
        spec,
        recipe,
        reader,
        rank=layout.data_rank,
        ranks=layout.data_ranks,
        peers=tuple(Peer(host, "", number, 1, rank) for number, (rank, host) in enumerate(hosts)),
        path=RunLayout(run_dir).attempt(spec.attempt).consumed(layout.data_rank),
        found=found.manifest if found else None,
    )


def _extra_files(spec: NodeSpec, corpus: ShardManifest, start: Start | None) -> dict[str, bytes]:
    """Small files of every checkpoint: the corpus' tokenizer, and what came with the first weights."""
    carried = start.weights.carried if start else {}
    return {**carried, **tokenizer_files(spec, corpus)}


def make_stepper(
    layout: Layout,
    recipe: RecipeSpec,
    session: Session,
    model: nn.Module,
    optimizer: AdamW,
    precision: MixedPrecision,
) -> Stepper:
    """What runs the steps of `model` in its layout."""
    objective, gradients = layout.objective(recipe), layout.gradients(model)
    return Stepper(
        runner=layout.runner(model, recipe, gradients, precision, objective),
        optimizer=optimizer,
        gradients=gradients,
        objective=objective,
        world=session.world,
        counts=layout.counts,
    )


def _start_state(
    spec: NodeSpec,
    recipe: RecipeSpec,
    session: Session,
    place: Place,
    config: ModelConfig,
    layout: Layout,
    model: nn.Module,
    optimizer: AdamW,
    metrics: Metrics,
    corpus: ShardManifest,
    start: Start | None,
) -> Found | None:
    """Give all ranks one state: the newest checkpoint's, which is returned, else rank 0's first weights."""
    _check_whole_copies(layout, place)
    warning = check_room(session, place, STATE_BYTES * _learning(config, recipe))
    if warning:
        metrics.note(warning)
    found = _find_resume(spec, recipe, session, place)
    if found is not None:
        check_model(found, encode(config))
        check_resume(found.manifest, recipe.lora, start)
    if start is not None and (found is None or recipe.lora is not None):
        # Whole copies get rank 0's in `align`: one rank reads, not all.
        reads = session.is_first or not layout.spec.is_replicas
        session.together(lambda: start.give(model) if reads else None)
    if found is None or recipe.lora is not None:
        layout.align(model)
    if found is None:
        return None
    restore(session, place, found, training_tensors(model, optimizer), session.device)
    metrics.note(f"resumed from checkpoint {found.step} of {found.manifest.run_id}")
    changed = changed_order(found.manifest, recipe, corpus, spec.data_mix)
    if changed:
        metrics.note(f"samples may repeat or be left out after this resume: {', '.join(changed)} changed")
    return found


def _check_whole_copies(layout: Layout, place: Place) -> None:
    """Without a shared place each host keeps a whole checkpoint, which only whole models can give it."""
    if not (place.shared or layout.spec.is_replicas):
        raise ConfigError(
            f"{layout.spec.name} over several hosts needs one place for checkpoints that all of them see; "
            f"{place.store.uri} is another folder on each",
            hint="set checkpoint.uri to a shared folder, hdfs:// or s3://",
            stage="checkpoint",
        )


def _learning(config: ModelConfig, recipe: RecipeSpec) -> int:
    """Numbers that learn."""
    if recipe.lora is None:
        return count_parameters(config)
    return sum(rows * columns for rows, columns in adapter_shapes(shapes(config), recipe.lora).values())


def changed_order(
    saved: CheckpointManifest, recipe: RecipeSpec, corpus: ShardManifest, mix: tuple[DataSource, ...] = ()
) -> list[str]:
    """What differs now of all that decides which samples a step takes; names for people."""
    now = encode(recipe)
    names = ("seed", "global_batch", "sequence_length")
    changed = [name for name in names if saved.recipe.get(name, now[name]) != now[name]]
    if saved.data.get("mix", []) != encode(mix):
        changed.append("the mixture")
    return changed + (["the corpus"] if saved.data.get("tokens", corpus.tokens) != corpus.tokens else [])


def _marker_template(
    spec: NodeSpec, recipe: RecipeSpec, session: Session, config: ModelConfig, corpus: ShardManifest
) -> CheckpointManifest:
    """COMMIT.json but for step, time and files: enough to build the model without the job."""
    return CheckpointManifest(
        run_id=spec.run_id,
        attempt=spec.attempt,
        step=0,
        world_size=session.world,
        created_at=0.0,
        files=(),
        model=encode(config),
        recipe=encode(recipe),
        data={
            "tokenizer": corpus.tokenizer,
            "tokenizer_file": encode(corpus.tokenizer_file),
            "vocab_size": corpus.vocab_size,
            "eos": corpus.eos,
            "tokens": corpus.tokens,
            "parameters": count_parameters(config),
            "mix": encode(spec.data_mix),
        },
    )


def _choose_precision(recipe: RecipeSpec, session: Session) -> MixedPrecision:
    fast = all(session.gather(bf16_is_fast(session.device)))
    return choose_precision(recipe.precision, session.device.type, fast_everywhere=fast)


def _introduce(
    metrics: Metrics,
    recipe: RecipeSpec,
    session: Session,
    config: ModelConfig,
    precision: MixedPrecision,
    layout: Layout,
) -> None:
    size = human_count(count_parameters(config))
    ranks = f"{session.world} ranks on {session.device.type}{_layout_text(layout)}"
    name = recipe.model.source or recipe.model.size
    adapted = "" if recipe.lora is None else f" ({human_count(_learning(config, recipe))} in adapters)"
    metrics.note(
        f"{name}: {size} parameters{adapted}, {ranks}, "
        f"batch {recipe.global_batch} x {recipe.sequence_length} tokens, "
        f"{precision.name} ({precision.reason}), {_threads()} per rank"
    )


def _layout_text(layout: Layout) -> str:
    """Nothing to say of whole copies."""
    return "" if layout.spec.is_replicas else f" ({layout.spec.name})"


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' * (count != 1)}"


def _find_resume(spec: NodeSpec, recipe: RecipeSpec, session: Session, place: Place) -> Found | None:
    """What to resume from. `resume: false` refuses a place that holds another training's checkpoints,
    because theirs and ours would be pruned and resumed as one; an earlier attempt's are our own."""
    found = find_latest(session, place)
    if found is None or recipe.resume or (found.manifest.run_id == spec.run_id and spec.attempt > 1):
        return found
    raise ConfigError(
        f"{place.store.uri} holds checkpoint {found.step} of {found.manifest.run_id}, and resume is off",
        hint="set checkpoint.uri to another folder, or remove the checkpoints there",
        stage="checkpoint",
    )
