"""vLLM for tests: an interpreter with the real one, or with a stand-in, and replicas made of either."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmctl.wire.codec import dumps
from tests.engine_kit import DEADLINE_S, Replica, await_ready, rank_environment, spec_of
from tests.worker_kit import ROOT, free_port

PYTHON = "LLMCTL_VLLM_PYTHON"
"""Environment variable: an interpreter with vLLM installed, for tests with the mark `vllm`."""
READY_S = 600.0
"""vLLM alone needs a minute of one core to start."""
FAKE = ROOT / "tests/lab/fake_vllm"


def fake_python(folder: Path) -> str:
    """An interpreter that has this one's packages, and the stand-in as `vllm`."""
    venv.create(folder, symlinks=True, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    paths = (sysconfig.get_path("purelib"), str(FAKE))
    (folder / "lib" / version / "site-packages/lent.pth").write_text("\n".join(paths) + "\n")
    return str(folder / "bin/python")


@contextmanager
def vllm_replica(
    folder: Path, model: Path, python: str, *, env: Mapping[str, str] | None = None, **changes: Any
) -> Iterator[Replica]:
    """A replica that vLLM computes for, on as many hosts as `nodes` says; ended with the context."""
    ready = str(folder / f"ready-{secrets.token_hex(4)}.json")
    spec, port = replace(spec_of(model, **changes), ready_file=ready), free_port()
    processes = []
    for node in range(spec.nodes):
        told = folder / f"spec-{node}.json"
        told.write_text(dumps(replace(spec, node=node)))
        command = [python, "-m", "llmctl.worker.infer.vllm.replica", str(told)]
        given = {**rank_environment(node, spec.nodes, port), "GLOO_SOCKET_IFNAME": "lo", **(env or {})}
        process = subprocess.Popen(
            command, env=given, cwd="/", text=True, stdout=sys.stderr, start_new_session=True
        )
        processes.append(process)
    try:
        yield Replica(processes, await_ready(Path(ready), processes, READY_S))
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=DEADLINE_S)
