"""The `infer` section of a job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmctl.controller.config.fields import Filled, Strict


class InferParallel(Strict):
    """How the ranks of one replica share the model."""

    tp: int = Field(1, ge=1, description="ranks that share each matrix, best on one host")
    pp: int = Field(1, ge=1, description="ranks that hold some of the layers each")


class InferSection(Strict):
    """`llmctl infer`: which model, in how many copies, and its limits."""

    model: Filled = Field(
        description="a Hugging Face folder or a run's checkpoint, as a path or URL that every host can read"
    )
    name: Filled | None = Field(None, description="what clients call it; else the last part of `model`")
    parallel: InferParallel = Field(default_factory=InferParallel, description="layout of each replica")
    replicas: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="copies of the model; auto: as many as the hosts' slots hold"
    )
    engine: Literal["builtin", "vllm"] = Field(
        "builtin", description="what computes; vllm: where it is installed in the hosts' python"
    )
    dtype: Literal["bf16", "fp32"] = Field("bf16", description="of weights and cache")
    max_batch: int = Field(16, ge=1, description="requests that one replica works on at once")
    max_tokens: int = Field(2048, ge=2, description="prompt and answer of one request together, at most")
    queue: int = Field(256, ge=0, description="requests that may wait; `serve` refuses more with 429")
    part_lines: int = Field(256, ge=1, description="input lines per output file of `batch`")
    hang_s: float = Field(
        60.0, gt=0, description="a replica that has work and is silent for so long is started anew"
    )
    start_s: float = Field(600.0, gt=0, description="seconds that a replica may take to load the model")
    max_restarts: int = Field(5, ge=0, description="of one replica in a row, before it is given up")
    check: bool = Field(True, description="compare logits with one process's before a layout serves")
    threads: int | None = Field(None, ge=1, description="CPU threads per rank; else cores / slots")
    grace_s: float = Field(30.0, ge=0, description="seconds that a stop gives requests to finish")
