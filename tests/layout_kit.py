"""Many layouts in few processes: starting torch costs more than twenty steps of a small model.

`run_worlds` starts one process that imports torch and forks the ranks of one world after the other; each rank
does its world's cases, and rank 0 leaves what they came to in `results.json`.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import math
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
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

PR_SET_PDEATHSIG = 1

MOST = 12
"""Cases per set of processes: each leaves its process groups behind, with their threads. Taking the groups
down is no way, because DTensor keeps a mesh of the same form and works on in its groups."""

World = tuple[int, list["Case"]]
"""How many ranks train which cases, one after the other."""


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        resume: a checkpoint folder that lies in the place for checkpoints before it starts.
        script: a script of one's own with a `prepare(job)`; else the recipe trains.
    """

    name: str
    recipe: RecipeSpec
    checkpoints: str
    resume: str = ""
    script: str = ""


@dataclass(frozen=True)
class Result:
    """What a training came to: its losses, gradient norms and notes, and hashes of the state that it began
    with where that was a checkpoint's.

    Attributes:
        rounding: of a self-check, how far the layout's gradient is from one computed in float64, and how
            far that of one process in float32 is.
    """

    losses: list[float]
    norms: list[float]
    notes: list[str]
    digests: dict[str, str]
    error: str = ""
    rounding: list[float] = field(default_factory=list)
    journals: list[str] = field(default_factory=list)


def case(
    base: Path, name: str, spec: ParallelSpec, *, resume: Path | None = None, script: str = "", **changes: Any
) -> Case:
    """TWENTY with some changes in the layout `spec`."""
    recipe = replace(TWENTY, parallel=spec, **changes)
    place = str(base / "checkpoints" / name)
    return Case(name=name, recipe=recipe, checkpoints=place, resume=str(resume or ""), script=script)


def run_worlds(base: Path, corpus: Path, worlds: Sequence[World]) -> dict[str, Result]:
    """What every case came to; worlds and their cases are trained in order, all on this host."""
    base.mkdir(parents=True, exist_ok=True)
    parts = [(ranks, cases[n : n + MOST]) for ranks, cases in worlds for n in range(0, len(cases), MOST)]
    document = [_world(base, corpus, ranks, cases) for ranks, cases in parts]
    (base / "worlds.json").write_text(json.dumps(document))
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(ROOT)}
    process = _spawn(
        [sys.executable, "-m", "tests.layout_kit", str(base)], env | {"GLOO_SOCKET_IFNAME": "lo"}
    )
    Job([process], deadline_s=DEADLINE_S).check()
    told: dict[str, Any] = {}
    for world in document:
        told |= json.loads(Path(world["folder"], "results.json").read_text())
    return {name: Result(**values) for name, values in told.items()}


def _world(base: Path, corpus: Path, ranks: int, cases: list[Case]) -> dict[str, Any]:
    """One entry of worlds.json."""
    port = free_port()
    folder = base / f"world-{ranks}-{cases[0].name.replace('/', ' ')}"
    folder.mkdir()
    spec = Cluster(base=folder, corpus=corpus, ranks=(ranks,)).spec(0, cases[0].recipe, port)
    spec = replace(spec, launch=replace(spec.launch, pg_timeout_s=300.0))
    return {"folder": str(folder), "ranks": ranks, "spec": encode(spec), "cases": [encode(c) for c in cases]}


def _environment(rank: int, spec: NodeSpec) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(spec.launch.world_size),
        "MASTER_ADDR": spec.launch.master_addr,
        "MASTER_PORT": str(spec.launch.master_port),
    }


def main(base: Path) -> int:
    """The parent of all ranks: 1 as soon as a rank of a world has failed."""
    _import_all()
    for world in json.loads((base / "worlds.json").read_text()):
        spec = decode(NodeSpec, world["spec"])
        ranks = [_fork(rank, world, spec) for rank in range(world["ranks"])]
        if any(os.waitstatus_to_exitcode(status) for status in _ends(ranks)):
            return 1
    return 0


def _import_all() -> None:
    """Everything that a rank will import, once for all of them. No thread may be started by this."""
    import torch._dynamo
    import torch.distributed.checkpoint
    import torch.utils.checkpoint  # noqa: F401

    import llmctl.worker.loop
    import llmctl.worker.parallel.mesh
    import llmctl.worker.parallel.pipeline
    import llmctl.worker.parallel.shard
    import llmctl.worker.parallel.tensor  # noqa: F401


def _fork(rank: int, world: dict[str, Any], spec: NodeSpec) -> int:
    """Start one rank; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        # Nothing outlives the parent, however that ends.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.environ.update(_environment(rank, spec))
        _rank(world, spec)
        code = 0
    except BaseException:  # noqa: BLE001 - a rank's last words; the parent sees its exit code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ends(ranks: list[int]) -> Iterator[int]:
    """Wait statuses as the ranks end; the first that is bad ends those that would wait for it."""
    left = set(ranks)
    while left:
        child, status = os.wait()
        left.discard(child)
        if status:
            for other in left:
                os.kill(other, signal.SIGKILL)
        yield status


def _rank(world: dict[str, Any], spec: NodeSpec) -> None:
    """One rank of one world."""
    from llmctl.worker.session import open_session

    session = open_session(spec)
    results = {}
    for number, told in enumerate(world["cases"]):
        now = decode(Case, told)
        results[now.name] = _train(spec, now, session, Path(world["folder"], f"case{number}"))
    if session.is_first:
        Path(world["folder"], "results.json").write_text(json.dumps(results))
    session.close()


def _train(spec: NodeSpec, now: Case, session: Any, folder: Path) -> dict[str, Any]:
    """Train as `llmctl.worker.train` does, in this process."""
    from llmctl.errors import LlmctlError
    from llmctl.worker.job import Job as WorkerJob
    from llmctl.worker.loop import Loop
    from llmctl.worker.metrics import Metrics
    from llmctl.worker.recipe import build
    from llmctl.worker.stop import StopSignal

    attempt = Path(RunLayout(str(folder / "run")).attempt(spec.attempt).root)
    attempt.mkdir(parents=True, exist_ok=True)
    if session.is_first and now.resume:
        shutil.copytree(now.resume, Path(now.checkpoints, Path(now.resume).name))
    session.gather(None)
    path = folder / "metrics.jsonl"
    metrics = Metrics(path=str(path) if session.is_first else None, speaks=False)
    here = replace(spec, checkpoint_uri=now.checkpoints)
    job = WorkerJob(
        spec=here,
        recipe=now.recipe,
        session=session,
        run_dir=str(folder / "run"),
        metrics=metrics,
        stop=StopSignal(),
    )
    digests, error = {}, ""
    rounding: list[float] = []
    try:
        with nullcontext() if now.script else _rounding_told(rounding):
            training = prepare(now.script, job)._training if now.script else build(job)
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
        "rounding": rounding,
        "journals": [path.name for path in attempt.glob("consumed-*.jsonl")],
    }


@contextmanager
def _rounding_told(into: list[float]) -> Iterator[None]:
    """Where the recipe checks itself inside, its two distances from float64 go `into` rank 0's list."""
    from llmctl.worker.selfcheck import SelfCheck

    compare = SelfCheck._compare

    def measured(check: Any, gradients: Any, weights: Any, weight: float) -> float:
        if check.precision.bf16 or check.recipe.dropout:
            return compare(check, gradients, weights, weight)
        exact = _exact_gradient(check, weights)
        alone, divisor = check._alone(weights)
        mine = {name: gradients[name].double() / weight for name in exact}
        one = {name: p.grad.double() / divisor for name, p in alone.named_parameters()}
        into.extend((_distance(mine, exact), _distance(one, exact)))
        return compare(check, gradients, weights, weight)

    SelfCheck._compare = measured  # type: ignore[method-assign]
    try:
        yield
    finally:
        SelfCheck._compare = compare  # type: ignore[method-assign]


def _exact_gradient(check: Any, weights: Any) -> dict[str, Any]:
    """The gradient of one process that computes in float64."""
    from llmctl.worker.parallel.layout import Replicas

    layout = Replicas(ParallelSpec(), replace(check.session, rank=0, world=1, host_group=None))
    model = layout.model(check.architecture, replace(check.recipe, parallel=None), check.precision).double()
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])
    objective, total = check.objective_of(layout), 0.0
    for piece in check._shares():
        total += float(objective.begin(piece.targets)[0])
        if len(piece.inputs):
            objective(model(piece.inputs), piece.targets).backward()
    return {name: p.grad / total for name, p in model.named_parameters()}


def _distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Norm of the difference over the norm of `other`."""
    apart = sum(float((one[name] - other[name]).square().sum()) for name in other)
    return math.sqrt(apart / sum(float(tensor.square().sum()) for tensor in other.values()))


def prepare(script: str, job: Any) -> Any:
    """What the script's `prepare` makes of the job."""
    found = importlib.util.spec_from_file_location("own_script", script)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.prepare(job)


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
    sys.exit(main(Path(sys.argv[1])))
