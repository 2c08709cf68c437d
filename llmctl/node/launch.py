"""PURE: a NodeSpec as argument lists and environments. No I/O, no clock: tests compare values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from llmctl.node.procs import ProcRef
from llmctl.wire import codec
from llmctl.wire import environment as names
from llmctl.wire.layout import HostLayout
from llmctl.wire.specs import LaunchSpec, NodeSpec

TORCHRUN = "torchrun"
DIRECT = "direct"

_STARTUP = "llmctl/worker/startup"
"""Holds the module that every interpreter imports by itself: so a rank can show where it hangs.
First on the path, because it imports a job's or host's own such module, and not the other way round."""

_KEPT = frozenset(("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH"))
_STORES = frozenset(("HADOOP_CONF_DIR", "HADOOP_HOME", "KRB5CCNAME", "KRB5_CONFIG", "XDG_CONFIG_HOME"))
"""By which the host finds its own way to HDFS, and its own stores.yaml."""
_KEPT_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "AWS_")


def clean(host_env: Mapping[str, str]) -> dict[str, str]:
    """What of the host's login environment a rank gets: an allow-list, so that jobs are reproducible."""
    return {k: v for k, v in host_env.items() if k in _KEPT or k in _STORES or k.startswith(_KEPT_PREFIXES)}


def job_environment(
    spec: NodeSpec, *, host_env: Mapping[str, str], secrets: Mapping[str, str], cores: int
) -> dict[str, str]:
    """The environment of launcher and ranks. Later wins: host, ours, the job's own, secrets, contract."""
    env = clean(host_env)
    env["PYTHONUNBUFFERED"] = "1"
    env["OMP_NUM_THREADS"] = str(max(1, cores // spec.launch.nproc))
    env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(max(1, math.ceil(spec.grace_s)))
    if spec.launch.interface:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
            env[name] = spec.launch.interface
    env.update(spec.env)
    env.update(secrets)
    env.update(contract(spec))
    agent_dir = HostLayout(spec.workdir).agent_dir(spec.agent)
    parts = (f"{agent_dir}/{_STARTUP}", env.get("PYTHONPATH"), agent_dir)
    env["PYTHONPATH"] = ":".join(part for part in parts if part)
    return env


def contract(spec: NodeSpec) -> dict[str, str]:
    """The names that every rank finds (wire/environment.py)."""
    host = HostLayout(spec.workdir)
    run = host.run(spec.run_id)
    attempt = run.attempt(spec.attempt)
    found = {
        names.RUN_ID: spec.run_id,
        names.RUN_DIR: run.root,
        names.ATTEMPT: str(spec.attempt),
        names.ATTEMPT_DIR: attempt.root,
        names.HOST: spec.host,
        names.METRICS: attempt.metrics,
        names.CHECKPOINT_URI: spec.checkpoint_uri or run.checkpoints,
        names.CACHE_DIR: host.cache,
        names.PG_TIMEOUT_S: f"{spec.launch.pg_timeout_s:g}",
    }
    if spec.data_uri is not None:
        found[names.DATA_URI] = spec.data_uri
    if spec.data_mix:
        found[names.DATA_MIX] = json.dumps(codec.encode(spec.data_mix))
    return found


def rank_command(spec: NodeSpec, agent: ProcRef) -> tuple[str, ...]:
    """One rank below its shim. The shim needs neither site-packages nor the user's PYTHON* settings."""
    python = spec.launch.python
    archive = HostLayout(spec.workdir).agent(spec.agent)
    shim = (python, "-I", "-S", archive, "rank", str(agent.pid), agent.start)
    return (*shim, python, "-u", *spec.launch.command)


def torchrun_command(spec: NodeSpec, agent: ProcRef) -> tuple[str, ...]:
    """torchrun with a static rendezvous: only that notices a lost peer (docs/decisions)."""
    launch = spec.launch
    logs = HostLayout(spec.workdir).run(spec.run_id).attempt(spec.attempt).root
    options = {
        "--nnodes": launch.nnodes,
        "--node-rank": launch.node_rank,
        "--nproc-per-node": launch.nproc,
        "--max-restarts": 0,
        "--monitor-interval": 0.1,
        "--rdzv-backend": "static",
        "--rdzv-id": f"{spec.run_id}-{spec.attempt}",
        "--master-addr": launch.master_addr,
        "--master-port": launch.master_port,
        # Its own folder of error files; else one would stay behind in /tmp with every run.
        "--log-dir": f"{logs}/torchelastic",
    }
    flat = [text for name, value in options.items() for text in (name, str(value))]
    head = (launch.python, "-u", "-m", "torch.distributed.run")
    return (*head, *flat, "--no-python", *rank_command(spec, agent))


def rank_environment(spec: NodeSpec, local_rank: int) -> dict[str, str]:
    """What torchrun would tell a rank, for ranks that the agent starts itself.

    Without TORCHELASTIC_USE_AGENT_STORE: no agent serves a store, so rank 0 makes it.
    """
    launch = spec.launch
    rank = str(launch.first_rank + local_rank)
    world = str(launch.world_size)
    return {
        "RANK": rank,
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": str(launch.nproc),
        "NODE_RANK": str(launch.node_rank),
        "GROUP_RANK": str(launch.node_rank),
        "GROUP_WORLD_SIZE": str(launch.nnodes),
        "ROLE_RANK": rank,
        "ROLE_NAME": "default",
        "ROLE_WORLD_SIZE": world,
        "MASTER_ADDR": launch.master_addr,
        "MASTER_PORT": str(launch.master_port),
        "TORCHELASTIC_RUN_ID": f"{spec.run_id}-{spec.attempt}",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }


def check(launch: LaunchSpec) -> str | None:
    """Why this can't be launched, or None."""
    if launch.launcher not in (TORCHRUN, DIRECT):
        return f"unknown launcher {launch.launcher!r}"
    if not launch.command:
        return "no command to run"
    if launch.nproc < 1 or launch.first_rank + launch.nproc > launch.world_size:
        return f"ranks {launch.first_rank}+{launch.nproc} do not fit a world of {launch.world_size}"
    return None
