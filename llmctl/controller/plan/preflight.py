"""Is each host fit for the job? Pure: facts in, problems out, each with what to do."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.controller.config.models import JobFile
from llmctl.controller.config.types import Host
from llmctl.controller.probe.facts import HostFacts, PythonFacts
from llmctl.wire.manifests import SHARD_MANIFEST

OLDEST_PYTHON = (3, 9)
OLDEST_PYTHON_FOR_RECIPE = (3, 10)
ROOM = 64 << 20
"""Bytes that must be free in the workdir for code, logs and the agent; checkpoints come on top."""

RANKS_ANYWHERE, RANKS_PER_CORE = 16, 4
"""Without GPUs a host starts this many ranks, or this many per core: far more make a machine unusable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One reason why a host can't run the job."""

    host: str
    message: str
    hint: str


def job_problems(host: Host, facts: HostFacts, job: JobFile) -> list[Problem]:
    """Every reason against starting this job on this host; empty when it is fit."""
    found = host_problems(host, facts, recipe=job.train.script is None)
    found += _gpu_problems(host, facts, job.train.backend)
    hint = f"shard it there, share it, or copy it to {host.name}: llmctl data shard SRC... DEST"
    paths = manifest_paths(job)
    for number in facts.data_missing:
        found.append(_problem(host, f"no data: {paths[number]} does not exist there", hint))
    return found


def manifest_paths(job: JobFile) -> list[str]:
    """The manifests of the job's corpora as paths on the hosts; a store that is no folder has none."""
    uris = [entry.uri.removeprefix("file://") for entry in job.data.corpora] if job.data else []
    return [f"{path.rstrip('/')}/{SHARD_MANIFEST}" for path in uris if path and "://" not in path]


def host_problems(host: Host, facts: HostFacts, *, recipe: bool = False) -> list[Problem]:
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


def _python_problems(host: Host, python: PythonFacts, *, recipe: bool) -> list[Problem]:
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


def _gpu_problems(host: Host, facts: HostFacts, backend: str) -> list[Problem]:
    if backend == "nccl" and not facts.gpus:
        return [_problem(host, "the job wants nccl and no GPU was found", "train.backend: gloo, or auto")]
    if facts.gpus and backend != "gloo" and host.slots is not None and host.slots > len(facts.gpus):
        message = f"slots: {host.slots}, but only {len(facts.gpus)} GPUs were found"
        return [_problem(host, message, f"slots: {len(facts.gpus)} for {host.name} in hosts.yaml")]
    return [] if facts.gpus and backend != "gloo" else _core_problems(host, facts)


def _core_problems(host: Host, facts: HostFacts) -> list[Problem]:
    most = max(RANKS_ANYWHERE, RANKS_PER_CORE * facts.cores)
    if host.slots is None or host.slots <= most:
        return []
    message = f"{host.slots} ranks on {facts.cores} cores; without GPUs at most {most} are started"
    return [_problem(host, message, f"-j NODESxRANKS with fewer ranks, or slots: {most} in hosts.yaml")]


def _problem(host: Host, message: str, hint: str) -> Problem:
    return Problem(host=host.name, message=message, hint=hint)


def _set(key: str, host: Host) -> str:
    return f"set `{key}:` for {host.name} in hosts.yaml"
