"""What the tests of `llmctl infer` share: a tiny model that answers at length, and the processes of a run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from llmctl.worker.hf.tokenizer import byte_tokenizer
from llmctl.worker.infer.engine.compiler import built
from tests.hf_kit import tiny
from tests.integration.cluster import Cluster

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
BATCH_S = 400.0
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")


def make_model(folder: Path) -> Path:
    """A random model over bytes, with a chat template; it never ends by itself."""
    model = tiny("llama", folder, vocab_size=257, num_hidden_layers=4, max_position_embeddings=1024)
    del model
    document = byte_tokenizer()
    (folder / "tokenizer.json").write_text(json.dumps(document))
    config = {"chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 256}))
    return folder


def infer_job(cluster: Cluster, model: Path | str, **keys: Any) -> None:
    """A job for this model; `keys` go into its `infer`. Hosts of the lab get the kernels of this machine (the
    tiny models of the others, whose heads are too small for them, need none)."""
    if cluster.lab and shutil.which("g++"):
        for name in "ab":
            folder = cluster.workdir(name) / "cache/kernels"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copy(built(os.environ), folder)  # compiling takes both cores for half a minute
    settings = {"model": str(model), "dtype": "fp32", "max_tokens": 1024, "threads": 1, "check": False}
    cluster.write_job(infer={**settings, **keys})


def run_batch(cluster: Cluster, *options: str, expect: int = 0) -> str:
    """`llmctl infer batch`, however long it takes on a busy machine; all that it says."""
    done = cluster.run("infer", "batch", *options, expect=expect, timeout=BATCH_S)
    return done.stdout + done.stderr


def prompts(path: Path, count: int, *, max_tokens: int, bad: dict[int, str] | None = None) -> None:
    """`count` lines, the same few prompts again and again; `bad` replaces some."""
    lines = []
    for number in range(count):
        document = {"id": f"n{number}", "prompt": WORDS[number % len(WORDS)], "max_tokens": max_tokens}
        lines.append((bad or {}).get(number, json.dumps(document)))
    path.write_text("".join(line + "\n" for line in lines))


def records(folder: Path) -> list[dict[str, Any]]:
    """All answers of an output folder, part after part."""
    parts = sorted(folder.glob("part-*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()]


def replicas(run_id: str) -> list[int]:
    """Pids of the rank processes of a run's replicas, lowest replica first."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environ = (folder / "environ").read_bytes().split(b"\0")
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = f"LLMCTL_RUN_ID={run_id}".encode() in environ
        if ours and b"llmctl.worker.infer.replica" in words:
            found.append((words[-2], int(folder.name)))
    return [pid for _, pid in sorted(found)]


def log(cluster: Cluster, run_id: str) -> str:
    """What the front and its replicas have said."""
    path = cluster.run_dir("a", run_id) / "attempt-1/rank-0.log"
    return path.read_text() if path.exists() else ""


def kill(pid: int, number: int) -> None:
    os.kill(pid, number)
