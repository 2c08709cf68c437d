"""The YAML that people write, as pydantic models: strict, unknown keys refused.

docs/reference/config.md is generated from these, so every field says what it means.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from llmctl.controller.config.attempts import RestartsSection, WatchSection
from llmctl.controller.config.fields import (
    PYTHON_VERSION,
    TORCH_BUILD,
    Addr,
    EnvName,
    Filled,
    HostName,
    LabelName,
    LabelValue,
    Name,
    Strict,
    Text,
)
from llmctl.controller.config.inference import InferSection
from llmctl.wire.model import SIZES


class HostDefaults(Strict):
    """What every host of the file has unless it says otherwise."""

    user: Filled | None = Field(None, description="login name; else `~/.ssh/config`, else your own")
    port: int | None = Field(None, ge=1, le=65535, description="SSH port; else `~/.ssh/config`, else 22")
    identity_file: Filled | None = Field(None, description="private key; else ssh-agent and the usual keys")
    workdir: Filled = Field("~/.llmctl", description="where llmctl keeps everything on the host")
    python: Filled = Field("python3", description="interpreter that has torch; absolute, or found on PATH")
    slots: int | None = Field(None, ge=1, description="ranks per host; else its GPUs, else 1")
    proxy_jump: Filled | None = Field(
        None, description="host to jump through: a name here or `user@addr:port`"
    )
    labels: dict[LabelName, LabelValue] = Field(
        default_factory=dict, description="words about every host, such as `gpu: h100`"
    )


class HostEntry(Strict):
    """One machine."""

    name: HostName = Field(description="what every message calls it")
    addr: Addr = Field(description="address or `~/.ssh/config` alias; `local`: this machine, without SSH")
    user: Filled | None = Field(None, description="as in `defaults`")
    port: int | None = Field(None, ge=1, le=65535, description="as in `defaults`")
    identity_file: Filled | None = Field(None, description="as in `defaults`")
    workdir: Filled | None = Field(None, description="as in `defaults`")
    python: Filled | None = Field(None, description="as in `defaults`")
    slots: int | None = Field(None, ge=1, description="as in `defaults`")
    proxy_jump: Filled | None = Field(None, description="as in `defaults`")
    internal_addr: Filled | None = Field(None, description="IP by which the other hosts reach this one")
    interface: Filled | None = Field(None, description="network interface for the job; else by route")
    labels: dict[LabelName, LabelValue] = Field(
        default_factory=dict, description="for `--limit gpu=h100`; added to those of `defaults`"
    )


class Pool(Strict):
    """Hosts that work together."""

    hosts: list[HostEntry] = Field(min_length=1, description="the machines, in rank order")


class HostsFile(Strict):
    """`hosts.yaml`: the inventory."""

    version: Literal[1] = Field(description="form of this file")
    defaults: HostDefaults = Field(default_factory=HostDefaults, description="for all hosts")
    pools: dict[Name, Pool] = Field(min_length=1, description="named groups of hosts")


class CodeSection(Strict):
    """What is pushed to the hosts."""

    path: Filled = Field(".", description="folder to push, relative to this file; `.gitignore` rules apply")


class EnvSection(Strict):
    """Environment of the ranks; nothing else of yours is forwarded."""

    set: dict[EnvName, Text] = Field(default_factory=dict, description="names and values")
    pass_: list[EnvName] = Field(default_factory=list, alias="pass", description="taken from your shell")
    secrets: list[EnvName] = Field(
        default_factory=list,
        description="taken from your shell, sent on the agent's stdin, never written or shown",
    )
    requirements: Filled | list[Filled] | None = Field(
        None,
        description="packages of the ranks: a requirements file, relative to this file, or a list; "
        "`llmctl hosts bootstrap` makes an environment of them, `train` uses it",
    )
    kind: Literal["venv", "system"] = Field(
        "venv", description="venv: an environment of its own; system: the packages of the host's `python`"
    )
    python: Annotated[str, StringConstraints(pattern=PYTHON_VERSION)] | None = Field(
        None, description="Python of the environment, such as `'3.12'`; else the newest that is there"
    )
    torch: Annotated[str, StringConstraints(pattern=TORCH_BUILD)] = Field(
        "auto",
        description="build of torch: auto (by driver), `default` (the index's own), cpu, cu128, rocm6.4 …",
    )

    @field_validator("kind", mode="before")
    @classmethod
    def _not_made_here(cls, value: object) -> object:
        if value == "conda":
            raise ValueError(
                "conda environments are not made, but used: `kind: system`, and in hosts.yaml"
                " `python: ~/miniconda3/envs/NAME/bin/python`"
            )
        if value == "container":
            raise ValueError(
                "containers are used by `kind: system`, and in hosts.yaml `python:` with a script that"
                " starts Python in the image (docs/hosts.md)"
            )
        return value


class MixEntry(Strict):
    """One corpus of a mixture."""

    uri: Text = Field(description="folder of token shards")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="share of the samples; normalised")


class DataSection(Strict):
    """The tokenised corpus, or several and how often each is drawn from."""

    uri: Text | None = Field(
        None, description="folder of token shards made by `llmctl data shard`; a path or fsspec URL"
    )
    mix: list[MixEntry] = Field(
        default_factory=list,
        description="instead of `uri`: several corpora of one tokenizer; weights are shares of the samples",
    )
    cache_bytes: int | None = Field(
        None, ge=1, description="bytes of copies of remote data on a host; else half of its free disk"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.uri is None) == (not self.mix):
            raise ValueError("needs `uri`, or `mix` with at least one corpus, and not both")
        return self

    @property
    def corpora(self) -> tuple[MixEntry, ...]:
        """Every corpus; a single one has weight 1."""
        return (MixEntry(uri=self.uri),) if self.uri is not None else tuple(self.mix)


class TrainSection(Strict):
    """How the ranks are started."""

    script: Text | None = Field(
        None, description="your script, relative to `code.path`; without it the recipe trains"
    )
    args: list[Text] = Field(default_factory=list, description="its arguments; `--` on the command line adds")
    backend: Literal["auto", "gloo", "nccl"] = Field("auto", description="auto: nccl with GPUs, else gloo")
    launcher: Literal["torchrun", "direct"] = Field(
        "torchrun", description="direct: the agent starts the ranks itself, about 1.4 s sooner"
    )
    pg_timeout_s: float = Field(600.0, gt=0, description="process-group timeout, seconds")
    grace_s: float = Field(20.0, ge=0, description="seconds between SIGTERM and SIGKILL on a stop")


class OptimizerSection(Strict):
    """AdamW with warm-up and a cosine schedule."""

    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="share of `lr` left at the last step")
    warmup_steps: int = Field(20, ge=0, description="steps of linear warm-up")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=[0.9, 0.95], min_length=2, max_length=2, description="Adam's betas"
    )
    weight_decay: float = Field(0.1, ge=0, description="on matrices only")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    clip_norm: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")


class ModelSection(Strict):
    """The built-in decoder: a size by name, and what differs from it."""

    size: Literal["tiny", "small", "125m", "350m", "1b", "3b", "7b"] = Field(
        "tiny", description="shape to start from; every other key here replaces one number of it"
    )
    from_: Filled | None = Field(
        None,
        alias="from",
        description="start from these weights, shape included: a Hugging Face folder or a run's checkpoint, "
        "as a path or URL that every host can read",
    )
    layers: int | None = Field(None, ge=1, description="decoder blocks")
    dim: int | None = Field(None, ge=8, description="width of the residual stream")
    heads: int | None = Field(None, ge=1, description="query heads")
    kv_heads: int | None = Field(None, ge=1, description="key and value heads; fewer than `heads`: GQA")
    ffn_dim: int | None = Field(None, ge=8, description="width of the SwiGLU layer")
    tied_head: bool | None = Field(None, description="share the embedding with the output head")
    rope_theta: float | None = Field(None, gt=0, description="base of the rotary embedding")

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        """The worker would refuse the same, but on every host and after the push."""
        if self.from_ is not None:
            others = sorted(self.model_fields_set - {"from_"})
            if others:
                raise ValueError(f"`from` brings its own shape; remove {', '.join(f'`{n}`' for n in others)}")
            return self
        shape = SIZES[self.size]
        dim, heads = self.dim or shape["dim"], self.heads or shape["heads"]
        kv_heads = self.kv_heads or shape["kv_heads"]
        if dim % heads:
            raise ValueError(f"`dim` {dim} can't be divided by `heads` {heads}")
        if dim // heads % 2:
            raise ValueError(f"`dim` / `heads` is {dim // heads}; the rotary embedding needs an even number")
        if heads % kv_heads:
            raise ValueError(f"`heads` {heads} can't be divided by `kv_heads` {kv_heads}")
        return self


class LoraSection(Strict):
    """Low-rank adapters: the model of `model.from` stays as it is, only the adapters learn."""

    rank: int = Field(8, ge=1, description="width of the adapters")
    alpha: float = Field(16.0, gt=0, description="their output is scaled by `alpha` / `rank`")
    targets: list[Literal["q", "k", "v", "out", "gate", "up", "down"]] = Field(
        default=["q", "k", "v", "out", "gate", "up", "down"],
        min_length=1,
        description="matrices of each layer that get one",
    )


class ParallelSection(Strict):
    """How the ranks share the work: sizes of one mesh, whose product is the number of ranks. `parallel: auto`
    leaves it to the planner; without this section every rank holds the whole model."""

    auto: bool = Field(False, description="the planner chooses; the same as `parallel: auto`")
    pp: int = Field(1, ge=1, description="pipeline: ranks that hold some of the layers each")
    dp_replicate: int | None = Field(None, ge=1, description="copies; else what is left of the ranks")
    dp_shard: int = Field(1, ge=1, description="FSDP2: ranks over which each copy is sharded")
    tp: int = Field(1, ge=1, description="tensor parallel: ranks that share each matrix, best on one host")
    cp: int = Field(1, ge=1, description="context parallel; more than 1 is refused: torch has none for CPUs")
    schedule: Literal["1f1b", "gpipe", "interleaved"] = Field("1f1b", description="of the pipeline")
    virtual_stages: int = Field(1, ge=1, description="stages per pipeline rank; more than 1: interleaved")
    sequence_parallel: bool = Field(True, description="tp ranks split the sequence between the matrices")
    loss_parallel: bool = Field(True, description="tp ranks split the vocabulary's logits")

    @model_validator(mode="before")
    @classmethod
    def _auto_is_a_word(cls, value: object) -> object:
        return {"auto": True} if value == "auto" else value

    @model_validator(mode="after")
    def _auto_or_sizes(self) -> Self:
        if self.auto and self.model_fields_set != {"auto"}:
            raise ValueError("`auto` chooses all sizes; leave the others out")
        return self


class RecipeSection(Strict):
    """The built-in recipe; with `train.script`, the settings that `llmctl.worker.prepare` trains the script's
    own model with."""

    model: ModelSection = Field(default_factory=ModelSection, description="the decoder")
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection, description="the optimizer")
    steps: int = Field(200, ge=1, description="optimizer steps in all")
    global_batch: int = Field(16, ge=1, description="samples per step over all ranks")
    micro_batch: int = Field(8, ge=1, description="samples per forward pass and rank")
    sequence_length: int = Field(256, ge=8, description="tokens per sample")
    seed: int = Field(0, ge=0, description="of weights and sample order")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where it helps")
    log_every: int = Field(10, ge=1, description="steps between log lines")
    threads: int | None = Field(None, ge=1, description="CPU threads per rank; else cores / local ranks")
    tensorboard: bool = Field(True, description="write TensorBoard files where the package is there")
    lora: LoraSection | None = Field(None, description="train adapters only; needs `model.from`")
    aggregation: Literal["tokens", "samples", "mean"] = Field(
        "tokens", description="the loss is a mean over tokens, over samples' means, or over data ranks' means"
    )
    activation_checkpointing: Literal["none", "full", "selective"] = Field(
        "none", description="blocks that are computed again in the backward pass: none, all, every second"
    )
    compile: bool = Field(False, description="torch.compile for each block; not with tp")
    dropout: float = Field(0.0, ge=0, lt=1, description="share dropped of what each sublayer adds")
    on_bad_loss: Literal["stop", "skip"] = Field(
        "stop", description="where the loss is no number or a spike: end the run, or leave the update out"
    )
    spike_threshold: float | None = Field(
        None, gt=1, description="a loss this many times the running mean is a spike; else none is"
    )
    self_check: bool = Field(
        False, description="before the first step, compare the gradient with that of one process"
    )

    @model_validator(mode="after")
    def _adapters_need_a_base(self) -> Self:
        if self.lora is not None and self.model.from_ is None:
            raise ValueError("`lora` adapts a model that is there: set `model.from`")
        return self


class CheckpointSection(Strict):
    """Checkpoints of the recipe."""

    uri: Text | None = Field(None, description="store for checkpoints; else each host's run directory")
    every: int = Field(100, ge=0, description="steps between checkpoints; 0: only at the end")
    keep: int = Field(3, ge=1, description="committed checkpoints that stay")
    keep_every: int = Field(0, ge=0, description="steps whose multiples stay for good; 0: none")
    async_: bool = Field(
        True, alias="async", description="training waits only for the copy to host memory, not for the store"
    )
    on_failure: Literal["warn", "stop"] = Field(
        "warn", description="of one that can't be saved; the last one's failure is always the job's"
    )
    verify_upload: bool = Field(True, description="read it back from a remote store before it counts")
    resume: bool = Field(True, description="continue from the last committed one")


class JobFile(Strict):
    """`job.yaml`: one job."""

    version: Literal[1] = Field(description="form of this file")
    name: Name = Field(description="first part of the run's id")
    pool: Name | None = Field(None, description="pool of hosts.yaml; not needed where it has only one")
    nodes: int | None = Field(None, ge=1, description="hosts to use, from the pool's first; else all")
    code: CodeSection | None = Field(None, description="what to push; needed with `train.script`")
    env: EnvSection = Field(default_factory=EnvSection, description="environment of the ranks")
    data: DataSection | None = Field(None, description="the corpus; needed by the recipe")
    train: TrainSection = Field(default_factory=TrainSection, description="how to start")
    recipe: RecipeSection = Field(
        default_factory=RecipeSection,
        description="what and how the recipe trains, or the script by `worker.prepare`",
    )
    parallel: ParallelSection | None = Field(None, description="layout of the ranks, or `auto`")
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection, description="checkpoints")
    infer: InferSection | None = Field(None, description="for `llmctl infer`; `llmctl train` passes it over")
    watch: WatchSection = Field(default_factory=WatchSection, description="hangs and slow hosts")
    restarts: RestartsSection = Field(default_factory=RestartsSection, description="attempts after the first")

    @property
    def script_has_recipe(self) -> bool:
        """The script trains by `llmctl.worker.prepare`: it is given the recipe's settings."""
        return self.train.script is not None and bool({"recipe", "parallel"} & self.model_fields_set)


class SettingsFile(Strict):
    """`llmctl.yaml` of a project and `~/.config/llmctl/config.yaml`: settings of the tool itself."""

    version: Literal[1] = Field(1, description="form of this file")
    hosts: Filled | None = Field(None, description="hosts file, relative to this file")
    pool: Name | None = Field(None, description="pool for jobs that name none")
    output: Literal["text", "json"] = Field("text", description="what read commands print")
    color: Literal["auto", "always", "never"] = Field("auto", description="auto: on a terminal")
    connect_timeout_s: float = Field(10.0, gt=0, description="seconds for one host to answer")
    state_dir: Filled | None = Field(None, description="the ledger and caches; else the XDG state folder")
