"""PURE: how one host's part of a replica is started: `vllm serve`, its arguments and its environment.

It listens on a Unix socket in the run's folder: on loopback other users of the host would reach what vLLM's
own key does not guard.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmctl.wire import environment
from llmctl.wire.infer import MAX_LOGPROBS, TOKEN, ReplicaSpec
from llmctl.worker.infer.vllm.source import VllmFolder

MODULE = "llmctl.worker.infer.vllm.launch"
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
ITEMSIZE = {"bf16": 2, "fp32": 4}

TORCHRUN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""vLLM starts its ranks itself: what is meant for ours would be taken for theirs."""


def serve_arguments(
    spec: ReplicaSpec, folder: VllmFolder, python: str, path: str, master: tuple[str, int]
) -> list[str]:
    """The command line of this host's part; only the first host's serves.

    Args:
        path: the socket on which it serves.
        master: address and port where the parts of several hosts meet.
    """
    length = spec.max_length + 1  # `score` reads a whole request's length and must make one token of its own
    if folder.positions is not None:
        length = min(length, folder.positions)
    argv = [python, "-m", MODULE, "serve", str(folder.path)]
    argv += ["--dtype", DTYPES[spec.dtype], "--max-model-len", str(length)]
    argv += ["--max-num-seqs", str(spec.max_batch), "--max-logprobs", str(MAX_LOGPROBS)]
    argv += ["--tensor-parallel-size", str(spec.tp), "--pipeline-parallel-size", str(spec.pp)]
    # The front says everything itself; what a model's folder suggests would change answers in silence.
    argv += ["--generation-config", "vllm", "--disable-uvicorn-access-log"]
    if not spec.devices:
        argv += _cache(spec, folder, length)
    if spec.nodes > 1:
        argv += ["--nnodes", str(spec.nodes), "--node-rank", str(spec.node)]
        argv += ["--master-addr", master[0], "--master-port", str(master[1])]
        argv += ["--distributed-executor-backend", "mp"]
    return [*argv, *(("--headless",) if spec.node else ("--uds", path))]


def _cache(spec: ReplicaSpec, folder: VllmFolder, length: int) -> list[str]:
    """On a CPU vLLM takes nearly all of the memory for its cache; replicas beside it would find none."""
    wanted = folder.cache_bytes(slots=spec.max_batch, length=length, itemsize=ITEMSIZE[spec.dtype])
    return [] if wanted is None else ["--kv-cache-memory-bytes", str(wanted)]


def serve_environment(spec: ReplicaSpec, env: Mapping[str, str]) -> dict[str, str]:
    """What the child is given: ours less torchrun's part and what is secret; no word to anybody outside."""
    left_out = (*TORCHRUN, TOKEN, environment.INFER_API_KEY)
    found = {name: value for name, value in env.items() if name not in left_out}
    found.update({"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"})
    if spec.devices:
        found["CUDA_VISIBLE_DEVICES"] = visible(spec.devices, env.get("CUDA_VISIBLE_DEVICES", ""))
    else:
        found.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # all replicas of a host would share one core
    if spec.threads:
        found["OMP_NUM_THREADS"] = str(spec.threads)
    if spec.nodes > 1:
        found.setdefault("VLLM_HOST_IP", spec.listen)
    return found


def visible(devices: tuple[int, ...], given: str) -> str:
    """The GPUs by the names that the host's own CUDA_VISIBLE_DEVICES has for them."""
    names = [name for name in given.split(",") if name]
    chosen = [names[device] if device < len(names) else str(device) for device in devices]
    return ",".join(chosen)
