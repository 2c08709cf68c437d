"""What tests of the recipe need: a small corpus of real text, run folders, and ranks as real processes."""

from __future__ import annotations

import array
import hashlib
import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmctl.wire.codec import dumps
from llmctl.wire.layout import HostLayout, RunLayout
from llmctl.wire.manifests import SHARD_MANIFEST, FileEntry, ShardEntry, ShardManifest
from llmctl.wire.recipe import ModelSpec, OptimizerSpec, RecipeSpec
from llmctl.wire.specs import LaunchSpec, NodeSpec, Peer

ROOT = Path(__file__).parents[1]
RUN_ID = "demo-7f3a"
DEADLINE_S = 120.0

MODEL = ModelSpec(size="tiny", overrides={"layers": 2, "dim": 32, "heads": 4, "kv_heads": 2, "ffn_dim": 64})
RECIPE = RecipeSpec(
    steps=8,
    global_batch=5,
    micro_batch=2,
    sequence_length=24,
    precision="fp32",
    model=MODEL,
    optimizer=OptimizerSpec(lr=3e-3, warmup_steps=4),
    checkpoint_every=4,
    threads=1,
    tensorboard=False,
)


def real_text(size: int = 60_000) -> bytes:
    """The beginning of a standard-library module: text that people wrote."""
    return Path(sysconfig.get_path("stdlib"), "argparse.py").read_bytes()[:size]


def make_corpus(folder: Path, text: bytes | None = None, shards: int = 3) -> Path:
    """Byte-level token shards with a manifest, as `llmctl data shard` leaves them."""
    text = real_text() if text is None else text
    folder.mkdir(parents=True)
    size = -(-len(text) // shards)
    entries = []
    for number in range(shards):
        tokens = array.array("H", list(text[number * size : (number + 1) * size]))
        tokens.append(256)
        name = f"shard-{number:05d}"
        files = [_put(folder, f"{name}.bin", tokens.tobytes()), _put(folder, f"{name}.idx", bytes(8))]
        entries.append(ShardEntry(name, len(tokens), 1, *files))
    manifest = ShardManifest(
        dtype="uint16",
        vocab_size=257,
        eos=256,
        tokenizer="bytes",
        tokens=sum(entry.tokens for entry in entries),
        documents=shards,
        shards=tuple(entries),
    )
    (folder / SHARD_MANIFEST).write_text(dumps(manifest))
    return folder


def _put(folder: Path, name: str, content: bytes) -> FileEntry:
    (folder / name).write_bytes(content)
    return FileEntry(name, len(content), hashlib.sha256(content).hexdigest())


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Hosts on this machine: each has its own workdir, so nothing but what a test shares is shared.

    Attributes:
        ranks: number of ranks of each host.
        checkpoint_uri: one place for all; None: each host keeps its own.
    """

    base: Path
    corpus: Path
    ranks: tuple[int, ...] = (1,)
    checkpoint_uri: str | None = None
    attempt: int = 1
    grace_s: float = 20.0
    env: dict[str, str] = field(default_factory=dict)

    def run_dir(self, host: int = 0) -> RunLayout:
        return HostLayout(str(self.base / f"host{host}")).run(RUN_ID)

    def checkpoints(self, host: int = 0) -> Path:
        return Path(self.checkpoint_uri or self.run_dir(host).checkpoints)

    def committed(self, host: int = 0) -> list[str]:
        return sorted(path.parent.name for path in self.checkpoints(host).glob("step-*/COMMIT.json"))

    def lines(self, kind: str = "step") -> list[dict[str, Any]]:
        """Metric lines of this attempt."""
        path = Path(self.run_dir().attempt(self.attempt).metrics)
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line["kind"] == kind]

    def losses(self) -> list[float]:
        return [line["loss"] for line in self.lines()]

    def start(self, recipe: RecipeSpec, **changes: Any) -> Job:
        """Start every rank, as a node agent with `launcher: direct` does."""
        port, world = free_port(), sum(self.ranks)
        processes: list[subprocess.Popen[str]] = []
        for host, first in enumerate(self._firsts()):
            self._write_spec(host, recipe, port, changes)
            for local in range(self.ranks[host]):
                env = self._env(host, first + local, local, world, port)
                processes.append(_spawn([sys.executable, "-m", "llmctl.worker.train"], env))
        return Job(processes)

    def torchrun(self, recipe: RecipeSpec) -> Job:
        """Start one host's ranks through torch.distributed.run with static rendezvous."""
        port = free_port()
        self._write_spec(0, recipe, port, {})
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--node-rank=0"),
            *(f"--nproc-per-node={self.ranks[0]}", "--rdzv-backend=static", "--max-restarts=0"),
            *("--master-addr=127.0.0.1", f"--master-port={port}", "-m", "llmctl.worker.train"),
        ]
        return Job([_spawn(command, self._env(0, None, None, self.ranks[0], port))])

    def train(self, recipe: RecipeSpec = RECIPE, **changes: Any) -> None:
        """Train to the end, and fail with the ranks' words if that does not work."""
        self.start(recipe, **changes).check()

    def _firsts(self) -> list[int]:
        return [sum(self.ranks[:host]) for host in range(len(self.ranks))]

    def spec(self, host: int, recipe: RecipeSpec, port: int) -> NodeSpec:
        """What one host is told."""
        firsts = self._firsts()
        return NodeSpec(
            run_id=RUN_ID,
            run_name="demo",
            host=f"h{host}",
            attempt=self.attempt,
            created_at=time.time(),
            workdir=str(self.base / f"host{host}"),
            launch=LaunchSpec(
                launcher="direct",
                python=sys.executable,
                command=("-m", "llmctl.worker.train"),
                nnodes=len(self.ranks),
                node_rank=host,
                nproc=self.ranks[host],
                world_size=sum(self.ranks),
                first_rank=firsts[host],
                master_addr="127.0.0.1",
                master_port=port,
                pg_timeout_s=60.0,
            ),
            peers=tuple(Peer(f"h{i}", "127.0.0.1", i, n, firsts[i]) for i, n in enumerate(self.ranks)),
            agent="0" * 64,
            data_uri=str(self.corpus),
            checkpoint_uri=self.checkpoint_uri,
            recipe=recipe,
            grace_s=self.grace_s,
        )

    def _write_spec(self, host: int, recipe: RecipeSpec, port: int, changes: dict[str, Any]) -> None:
        spec, layout = self.spec(host, recipe, port), self.run_dir(host)
        Path(layout.attempt(self.attempt).root).mkdir(parents=True, exist_ok=True)
        Path(layout.node_spec).write_text(dumps(replace(spec, **changes)))

    def _env(self, host: int, rank: int | None, local: int | None, world: int, port: int) -> dict[str, str]:
        layout = self.run_dir(host)
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": "lo",
            "LLMCTL_RUN_DIR": layout.root,
            "LLMCTL_ATTEMPT_DIR": layout.attempt(self.attempt).root,
            "LLMCTL_METRICS": layout.attempt(self.attempt).metrics,
            **self.env,
        }
        if rank is not None:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(local), "WORLD_SIZE": str(world)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return env


def _spawn(command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=env, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@dataclass(frozen=True, slots=True)
class Job:
    """The processes of one attempt; every wait has a deadline, and nothing outlives it."""

    processes: list[subprocess.Popen[str]]
    deadline_s: float = DEADLINE_S

    def results(self) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of each process."""
        results = []
        try:
            for process in self.processes:
                out, err = process.communicate(timeout=self.deadline_s)
                results.append((process.returncode, out, err))
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
                    process.communicate()
        return results

    def check(self) -> list[tuple[int, str, str]]:
        results = self.results()
        assert all(code == 0 for code, _, _ in results), results
        return results
