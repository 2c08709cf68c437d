"""Several layouts one after the other in one set of processes: starting torch costs more than twenty steps.

`run_cases` starts the ranks; each runs this file with a folder, does the cases in `cases.json`, and rank 0
leaves what they came to in `results.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmctl.wire.codec import decode, encode
from llmctl.wire.layout import RunLayout
from llmctl.wire.parallel import ParallelSpec
from llmctl.wire.recipe import ModelSpec, RecipeSpec
from llmctl.wire.specs import NodeSpec
from tests.worker_kit import RECIPE, ROOT, Cluster, Job, _spawn, free_port

MODEL = ModelSpec(size="tiny", overrides={"layers": 4, "dim": 32, "heads": 4, "kv_heads": 2, "ffn_dim": 64})
TWENTY = replace(RECIPE, steps=20, checkpoint_every=0, global_batch=12, micro_batch=2, model=MODEL)
"""Twenty steps of a model with four layers: as many as a pipeline of four stages needs."""


DEADLINE_S = 900.0
"""For all cases of one call: two cores may be shared by eight ranks and other tests."""


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        resume: a checkpoint folder that lies in the place for checkpoints before it starts.
    """

    name: str
    recipe: RecipeSpec
    checkpoints: str
    resume: str = ""


@dataclass(frozen=True)
class Result:
    """What a training came to: its losses, gradient norms and notes, and hashes of the state that it began
    with where that was a checkpoint's."""

    losses: list[float]
    norms: list[float]
    notes: list[str]
    digests: dict[str, str]
    error: str = ""
    journals: list[str] = field(default_factory=list)


def case(base: Path, name: str, spec: ParallelSpec, *, resume: Path | None = None, **changes: Any) -> Case:
    """TWENTY with some changes in the layout `spec`."""
    recipe = replace(TWENTY, parallel=spec, **changes)
    place = str(base / "checkpoints" / name)
    return Case(name=name, recipe=recipe, checkpoints=place, resume=str(resume or ""))


def run_cases(base: Path, corpus: Path, ranks: int, cases: list[Case]) -> dict[str, Result]:
    """What every case came to, all of them trained by the same `ranks` processes on one host."""
    base.mkdir(parents=True, exist_ok=True)
    port = free_port()
    spec = Cluster(base=base, corpus=corpus, ranks=(ranks,)).spec(0, cases[0].recipe, port)
    spec = replace(spec, launch=replace(spec.launch, pg_timeout_s=300.0))
    document = {"spec": encode(spec), "cases": [encode(case) for case in cases]}
    (base / "cases.json").write_text(json.dumps(document))
    command = [sys.executable, "-m", "tests.layout_kit", str(base)]
    processes = [_spawn(command, _environment(rank, ranks, port)) for rank in range(ranks)]
    Job(processes, deadline_s=DEADLINE_S).check()
    told = json.loads((base / "results.json").read_text())
    return {name: Result(**values) for name, values in told.items()}


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def main(base: Path) -> None:
    """One rank."""
    from llmctl.worker.session import open_session

    document = json.loads((base / "cases.json").read_text())
    spec = decode(NodeSpec, document["spec"])
    session = open_session(spec)
    results = {}
    for number, told in enumerate(document["cases"]):
        now = decode(Case, told)
        results[now.name] = _train(spec, now, session, base / f"case{number}")
    if session.is_first:
        (base / "results.json").write_text(json.dumps(results))
    session.close()


def _train(spec: NodeSpec, now: Case, session: Any, folder: Path) -> dict[str, Any]:
    """Train as `llmctl.worker.train` does, in this process."""
    from llmctl.errors import LlmctlError
    from llmctl.worker.loop import Loop
    from llmctl.worker.metrics import Metrics
    from llmctl.worker.stop import StopSignal
    from llmctl.worker.trainer import build

    attempt = Path(RunLayout(str(folder / "run")).attempt(spec.attempt).root)
    attempt.mkdir(parents=True, exist_ok=True)
    if session.is_first and now.resume:
        shutil.copytree(now.resume, Path(now.checkpoints, Path(now.resume).name))
    session.gather(None)
    path = folder / "metrics.jsonl"
    metrics = Metrics(path=str(path) if session.is_first else None, speaks=False)
    here = replace(spec, checkpoint_uri=now.checkpoints)
    digests, error = {}, ""
    try:
        training = build(here, now.recipe, session, str(folder / "run"), metrics, StopSignal())
        digests = _digests(training, session) if training.done else {}
        Loop(training).run()
        training.batches.close()
    except LlmctlError as failure:
        error = failure.line()
    metrics.close()
    session.gather(None)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    steps = [line for line in lines if line["kind"] == "step"]
    return {
        "losses": [line["loss"] for line in steps],
        "norms": [line["grad_norm"] for line in steps],
        "notes": [line["text"] for line in lines if line["kind"] == "note"],
        "digests": digests,
        "error": error,
        "journals": [path.name for path in attempt.glob("consumed-*.jsonl")],
    }


def _digests(training: Any, session: Any) -> dict[str, str]:
    """A hash of every whole tensor of the training's state, whoever holds how much of it."""
    from llmctl.worker.checkpoint.state import training_tensors

    mine = {}
    for name, tensor in training_tensors(training.model, training.optimizer).items():
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        mine[name] = hashlib.sha256(whole.contiguous().numpy().tobytes()).hexdigest()
    found: dict[str, str] = {}
    for told in session.gather(mine):
        for name, digest in told.items():
            assert found.setdefault(name, digest) == digest, f"ranks differ in {name}"
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)
