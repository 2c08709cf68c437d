"""Several layouts one after the other in one set of processes: starting torch costs more than twenty steps.

`run_cases` starts the ranks; each runs this file with a folder, does the cases in `cases.json` and rank 0
leaves their losses in `results.json`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmctl.wire.codec import decode, encode
from llmctl.wire.recipe import RecipeSpec
from llmctl.wire.specs import NodeSpec
from tests.worker_kit import ROOT, Cluster, Job, _spawn, free_port


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training: its losses are asked for.

    Attributes:
        checkpoints: folder of its checkpoints; None: none of its own.
    """

    name: str
    recipe: RecipeSpec
    checkpoints: str | None = None


def run_cases(base: Path, corpus: Path, ranks: int, cases: list[Case]) -> dict[str, list[float]]:
    """The losses of every case, all of them trained by the same `ranks` processes on one host."""
    base.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(base=base, corpus=corpus, ranks=(ranks,))
    port = free_port()
    spec = cluster.spec(0, cases[0].recipe, port)
    document = {
        "spec": encode(spec),
        "cases": [{**encode(case.recipe), "name": case.name, "uri": case.checkpoints} for case in cases],
    }
    (base / "cases.json").write_text(json.dumps(document))
    command = [sys.executable, "-m", "tests.layout_kit", str(base)]
    Job([_spawn(command, _environment(rank, ranks, port)) for rank in range(ranks)]).check()
    results: dict[str, list[float]] = json.loads((base / "results.json").read_text())
    return results


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
    for case in document["cases"]:
        recipe = decode(RecipeSpec, case)
        results[case["name"]] = _train(
            replace(spec, checkpoint_uri=case["uri"]), recipe, session, base / case["name"]
        )
    if session.is_first:
        (base / "results.json").write_text(json.dumps(results))
    session.close()


def _train(spec: NodeSpec, recipe: RecipeSpec, session: Any, folder: Path) -> list[float]:
    """Train as `llmctl.worker.train` does, in this process; returns rank 0's losses."""
    from llmctl.worker.loop import Loop
    from llmctl.worker.metrics import Metrics
    from llmctl.worker.stop import StopSignal
    from llmctl.worker.trainer import build

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    metrics = Metrics(path=str(path) if session.is_first else None, speaks=False)
    training = build(spec, recipe, session, str(folder / "run"), metrics, StopSignal())
    Loop(training).run()
    training.batches.close()
    metrics.close()
    session.gather(None)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if session.is_first else []
    return [line["loss"] for line in lines if line["kind"] == "step"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)
