"""Is each host fit for the job? Pure: facts in, problems out, each with what to do."""

from __future__ import annotations

from llmctl.controller.config.models import JobFile
from llmctl.controller.config.types import Host
from llmctl.controller.plan.verdicts import Level, Verdict, machine_verdicts
from llmctl.controller.plan.vllm import host_lacks, model_paths, uses_vllm
from llmctl.controller.probe.facts import HostFacts, PythonFacts
from llmctl.wire.manifests import SHARD_MANIFEST
from llmctl.wire.model import count_parameters, model_config
from llmctl.wire.recipe import ModelSpec

OLDEST_PYTHON = (3, 9)
OLDEST_PYTHON_FOR_RECIPE = (3, 10)
ROOM = 64 << 20
"""Bytes that must be free in the workdir for code, logs and the agent; checkpoints come on top."""

USUAL_VOCABULARY = 32_000

RANKS_ANYWHERE, RANKS_PER_CORE = 16, 4
"""Without GPUs a host starts this many ranks, or this many per core: far more make a machine unusable."""


def verdicts(host: Host, facts: HostFacts, job: JobFile | None = None) -> list[Verdict]:
    """Everything worth knowing about one host, unfit first; with a job, about that job on that host.

    Without a job a host with GPUs is judged as one that will use them.
    """
    found = job_problems(host, facts, job) if job else host_problems(host, facts)
    recipe = job is not None and job.train.script is None
    machine = _machine(host, facts, job)
    known = {(verdict.about, verdict.message) for verdict in found}
    found += [verdict for verdict in machine if (verdict.about, verdict.message) not in known]
    if recipe and job is not None:
        found += _recipe_advice(host, facts, job)
    return sorted(found, key=lambda verdict: verdict.level is Level.WARN)


def job_problems(host: Host, facts: HostFacts, job: JobFile) -> list[Verdict]:
    """Every reason against starting this job on this host; empty when it is fit."""
    if facts.python is None and job.env.requirements and job.env.kind != "system" and not facts.workdir_error:
        message = "the environment that the job asks for (env.requirements) is not there"
        return [_problem(host, message, f"llmctl hosts bootstrap --limit {host.name}")]
    found = host_problems(host, facts, recipe=job.train.script is None)
    found += _gpu_problems(host, facts, job.train.backend)
    found += [verdict for verdict in _machine(host, facts, job) if verdict.level is Level.UNFIT]
    hint = f"shard it there, share it, or copy it to {host.name}: llmctl data shard SRC... DEST"
    paths = manifest_paths(job)
    if uses_vllm(job):
        return found + [_problem(host, message, what) for message, what in host_lacks(host, facts, job)]
    for number in facts.data_missing:
        found.append(_problem(host, f"no data: {paths[number]} does not exist there", hint))
    return found


def asked_paths(job: JobFile) -> list[str]:
    """Files on the hosts that a probe looks for; `HostFacts.data_missing` counts in this list."""
    return model_paths(job) or manifest_paths(job)


def _machine(host: Host, facts: HostFacts, job: JobFile | None) -> list[Verdict]:
    """A GPU whose driver is broken counts as one: `auto` would quietly train on the CPUs of all hosts."""
    broken = facts.more.gpu_error is not None and "no devices" not in facts.more.gpu_error.lower()
    uses_gpus = (bool(facts.gpus) or broken) and (job is None or job.train.backend != "gloo")
    ranks = host.slots or len(facts.gpus) or 1
    return machine_verdicts(host, facts, ranks=ranks, uses_gpus=uses_gpus)


def checkpoint_bytes(job: JobFile) -> int | None:
    """Bytes of one checkpoint of the recipe: weights and AdamW's two moments in fp32; None for a script.

    The vocabulary is the data's; without a look at it the usual 32k is taken.
    """
    if job.train.script is not None:
        return None
    given = job.recipe.model.model_dump(exclude={"size"}, exclude_none=True)
    spec = ModelSpec(size=job.recipe.model.size, overrides=given)
    return 12 * count_parameters(model_config(spec, USUAL_VOCABULARY))


def _recipe_advice(host: Host, facts: HostFacts, job: JobFile) -> list[Verdict]:
    """Room for the checkpoints that will be kept (one more while it is written), and the tokenizer."""
    found = []
    one = checkpoint_bytes(job) or 0
    needed = one * (job.checkpoint.keep + 1)
    if job.checkpoint.uri is None and not facts.workdir_error and facts.disk_free < needed:
        free = facts.disk_free / 1e9
        kept = f"{job.checkpoint.keep} checkpoints and the next"
        message = f"{needed / 1e9:.1f} GB for {kept}, {free:.1f} GB free"
        hint = f"lower checkpoint.keep, set checkpoint.uri, or {_set('workdir', host)}"
        unfit = facts.disk_free < one
        level = Level.UNFIT if unfit else Level.WARN
        found.append(Verdict(host=host.name, about="disk", level=level, message=message, hint=hint))
    if facts.python and facts.python.torch and "tokenizers" not in facts.python.modules:
        hint = f"on {host.name}: {facts.python.executable} -m pip install tokenizers"
        message = "python has no tokenizers: fine for byte-level data, not for a tokenizer.json"
        found.append(
            Verdict(host=host.name, about="tokenizers", level=Level.WARN, message=message, hint=hint)
        )
    return found


def manifest_paths(job: JobFile) -> list[str]:
    """The manifests of the job's corpora as paths on the hosts; a store that is no folder has none."""
    uris = [entry.uri.removeprefix("file://") for entry in job.data.corpora] if job.data else []
    return [f"{path.rstrip('/')}/{SHARD_MANIFEST}" for path in uris if path and "://" not in path]


def host_problems(host: Host, facts: HostFacts, *, recipe: bool = False) -> list[Verdict]:
    """What `hosts check` shows for one host, whatever the job."""
    found = []
    if facts.workdir_error:
        found.append(_problem(host, f"{facts.workdir}: {facts.workdir_error}", _set("workdir", host)))
    elif facts.disk_free < ROOM:
        free = facts.disk_free >> 20
        found.append(
            _problem(
                host,
                f"only {free} MB free in {facts.workdir}; {ROOM >> 20} MB are needed to start",
                f"make room on {host.name}, or {_set('workdir', host)}",
            )
        )
    if facts.python is None:
        message = f"python does not start: {facts.python_error} ({host.python})"
        return [*found, _problem(host, message, f"install Python, or {_set('python', host)}")]
    return found + _python_problems(host, facts.python, recipe=recipe)


def _python_problems(host: Host, python: PythonFacts, *, recipe: bool) -> list[Verdict]:
    where = f"({python.executable}, {python.version})"
    oldest = OLDEST_PYTHON_FOR_RECIPE if recipe else OLDEST_PYTHON
    if tuple(int(part) for part in python.version.split(".")[:2]) < oldest:
        message = f"python is too old {where}; {oldest[0]}.{oldest[1]} or newer is needed"
        return [_problem(host, message, _set("python", host))]
    if python.torch is None:
        hint = f"on {host.name}: {python.executable} -m pip install torch   or {_set('python', host)}"
        return [_problem(host, f"python has no torch {where}", hint)]
    if recipe and "fsspec" not in python.modules:
        hint = f"on {host.name}: {python.executable} -m pip install fsspec"
        return [_problem(host, f"python has no fsspec {where}, the recipe reads its data by it", hint)]
    return []


def _gpu_problems(host: Host, facts: HostFacts, backend: str) -> list[Verdict]:
    if backend == "nccl" and not facts.gpus:
        return [_problem(host, "the job wants nccl and no GPU was found", "train.backend: gloo, or auto")]
    if facts.gpus and backend != "gloo" and host.slots is not None and host.slots > len(facts.gpus):
        message = f"slots: {host.slots}, but only {len(facts.gpus)} GPUs were found"
        return [_problem(host, message, f"slots: {len(facts.gpus)} for {host.name} in hosts.yaml")]
    return [] if facts.gpus and backend != "gloo" else _core_problems(host, facts)


def _core_problems(host: Host, facts: HostFacts) -> list[Verdict]:
    most = max(RANKS_ANYWHERE, RANKS_PER_CORE * facts.cores)
    if host.slots is None or host.slots <= most:
        return []
    message = f"{host.slots} ranks on {facts.cores} cores; without GPUs at most {most} are started"
    return [_problem(host, message, f"-j NODESxRANKS with fewer ranks, or slots: {most} in hosts.yaml")]


def _problem(host: Host, message: str, hint: str) -> Verdict:
    return Verdict(host=host.name, message=message, hint=hint)


def _set(key: str, host: Host) -> str:
    return f"set `{key}:` for {host.name} in hosts.yaml"
