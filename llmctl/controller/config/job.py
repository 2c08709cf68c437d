"""job.yaml + inventory + flags + environment -> RunConfig: everything a `train` was asked to do, checked.

Every mistake that can be seen without a host is refused here, before anything is connected to.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from llmctl.controller.config.checking import check_document
from llmctl.controller.config.inventory import select_hosts
from llmctl.controller.config.models import DataSection, JobFile, TrainSection
from llmctl.controller.config.overrides import NO_OVERRIDES, JobOverrides, apply_overrides
from llmctl.controller.config.places import expand
from llmctl.controller.config.requirements import requirements_of
from llmctl.controller.config.secrets import refuse_password_in_uri, secret_notes, split_secrets
from llmctl.controller.config.types import Host, Inventory, RunConfig
from llmctl.controller.config.yamlfile import read_yaml
from llmctl.errors import ConfigError
from llmctl.wire import environment

LAUNCHER_NAMES = frozenset(
    (
        *environment.MEANING,
        "RANK",
        "LOCAL_RANK",
        "GROUP_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
)
"""Variables that the launch itself sets; a job that sets one could not work."""

FILES_SEARCHED = 5000
"""Names looked at for the nearest one to a script that does not exist."""


def load_job(path: str | Path) -> JobFile:
    """The job in the file at `path`. Raises ConfigError."""
    return check_document(JobFile, read_yaml(path), "the job")


def resolve(
    job: JobFile,
    inventory: Inventory,
    *,
    overrides: JobOverrides = NO_OVERRIDES,
    environ: Mapping[str, str],
    base: str | Path,
    default_pool: str | None = None,
    inference: bool = False,
    uris: Sequence[str] = (),
) -> RunConfig:
    """Everything merged and checked.

    Args:
        inference: for `llmctl infer`: the job's `infer` counts, and what only a training needs is left out.
        uris: further stores that the hosts will need the accounts of.
        base: folder that relative paths of the job are relative to.
        default_pool: the pool of the tool's settings, for a job that names none.

    Raises:
        ConfigError: a wrong override, pool, host glob, script, secret or combination.
    """
    base = Path(base).absolute()
    written = apply_overrides(job, overrides, environ)
    if inference:
        written = _inference_only(written)
    _check_env_names(written)
    merged, secrets = split_secrets(written, environ)
    merged = _with_packages(_with_absolute_uris(merged, base), base)
    if not inference:
        _check_work(merged, base)
    secrets.update(_accounts(merged, environ, uris))
    _refuse_pushed_secret(job, merged, base)
    pool = merged.pool or default_pool
    hosts = select_hosts(inventory, pool=pool, nodes=merged.nodes, limit=overrides.limit, skip_drained=True)
    drained_notes = _drained_notes(inventory, pool)
    if overrides.nproc is not None:
        hosts = tuple(replace(host, slots=overrides.nproc) for host in hosts)
    passed = {name: environ[name] for name in merged.env.pass_ if name in environ}
    return RunConfig(
        hosts=hosts,
        job=merged,
        base=str(base),
        env={**passed, **merged.env.set},
        secrets=secrets,
        notes=(*secret_notes(written, merged), *drained_notes),
    )


def _inference_only(job: JobFile) -> JobFile:
    """The same file may describe a training; its data and script need not be there to use the model."""
    if job.infer is None:
        raise ConfigError(
            "the job has no `infer`", hint="add `infer: {model: PATH_OR_URL}`; docs/inference.md explains it"
        )
    train = TrainSection(grace_s=job.infer.grace_s, launcher="direct")
    return JobFile(
        version=1, name=job.name, pool=job.pool, nodes=job.nodes, env=job.env, infer=job.infer, train=train
    )


def again(job: JobFile, hosts: tuple[Host, ...], *, environ: Mapping[str, str], base: str) -> RunConfig:
    """A recorded job, to be gone on with on these hosts: `env.pass` and secrets are those of now.

    Raises:
        ConfigError: a secret that the job names is not set here.
    """
    merged, secrets = split_secrets(job, environ)
    secrets.update(_accounts(merged, environ, ()))
    passed = {name: environ[name] for name in merged.env.pass_ if name in environ}
    return RunConfig(hosts=hosts, job=merged, base=base, env={**passed, **merged.env.set}, secrets=secrets)


def _with_packages(job: JobFile, base: Path) -> JobFile:
    """The packages themselves instead of the file that names them: a run's record is whole without it."""
    wanted = requirements_of(job.env, base)
    if wanted is None:
        return job
    return job.model_copy(update={"env": job.env.model_copy(update={"requirements": list(wanted.lines)})})


def _accounts(job: JobFile, environ: Mapping[str, str], more: Sequence[str]) -> dict[str, str]:
    """What of the user's stores.yaml the ranks need, as a secret of theirs: their hosts need no such file."""
    uris = [entry.uri for entry in job.data.corpora] if job.data else []
    uris += [job.checkpoint.uri] if job.checkpoint.uri else []
    uris += [job.infer.model] if job.infer else []
    uris += more
    if not any("://" in uri for uri in uris):
        return {}
    from llmctl.storage.accounts import portable

    found = portable(uris, environ)
    return {environment.STORES: json.dumps(found)} if found else {}


def job_for_record(job: JobFile) -> dict[str, Any]:
    """The job as plain values for node.json and the ledger: secrets are names in it, never values."""
    cleaned, _ = split_secrets(job, _AnyValue())
    return cleaned.model_dump(mode="json", by_alias=True, exclude_unset=True)


class _AnyValue(dict[str, str]):
    """An environment in which everything is set: for recording, only the names matter."""

    def get(self, _key: str, _default: Any = None) -> str:
        return "***"

    def __contains__(self, _key: object) -> bool:
        return True


def _check_env_names(job: JobFile) -> None:
    for key, names in (("set", job.env.set), ("pass", job.env.pass_), ("secrets", job.env.secrets)):
        for name in names:
            if name in LAUNCHER_NAMES:
                raise ConfigError(f"`env.{key}` has {name}, which llmctl itself sets for every rank")


def _with_absolute_uris(job: JobFile, base: Path) -> JobFile:
    """The job's folder means nothing on a host, so a relative path is made absolute here."""
    update: dict[str, Any] = {}
    if job.data is not None:
        update["data"] = _absolute_data(job.data, base)
    if job.checkpoint.uri is not None:
        uri = absolute_uri(job.checkpoint.uri, "checkpoint.uri", base)
        update["checkpoint"] = job.checkpoint.model_copy(update={"uri": uri})
    if job.recipe.model.from_ is not None:
        source = absolute_uri(job.recipe.model.from_, "recipe.model.from", base)
        model = job.recipe.model.model_copy(update={"from_": source})
        update["recipe"] = job.recipe.model_copy(update={"model": model})
    if job.infer is not None:
        model_uri = absolute_uri(job.infer.model, "infer.model", base)
        update["infer"] = job.infer.model_copy(update={"model": model_uri})
    return job.model_copy(update=update)


def _absolute_data(data: DataSection, base: Path) -> DataSection:
    if data.uri is not None:
        return data.model_copy(update={"uri": absolute_uri(data.uri, "data.uri", base)})
    mix = [
        entry.model_copy(update={"uri": absolute_uri(entry.uri, f"data.mix[{number}].uri", base)})
        for number, entry in enumerate(data.mix)
    ]
    return data.model_copy(update={"mix": mix})


def absolute_uri(uri: str, key: str, base: Path) -> str:
    """A URI as a host understands it: a relative path from `base` on. Raises ConfigError."""
    if not uri:
        raise ConfigError(f"`{key}` is empty")
    refuse_password_in_uri(uri, key)
    if "://" in uri or "::" in uri or uri.startswith("~"):
        return uri
    return str(base / uri)


def _check_work(job: JobFile, base: Path) -> None:
    if job.train.script is not None:
        _check_script(job, job.train.script, base)
        return
    if job.train.args:
        raise ConfigError(
            "arguments without `train.script`: the built-in recipe takes none",
            hint="set `train.script`, or set the recipe's keys: --set recipe.steps=50",
        )
    if job.data is None:
        raise ConfigError(
            "the built-in recipe needs `data.uri` or `data.mix`",
            hint="llmctl data shard makes such a folder from text; your own script needs `train.script`",
        )
    if job.code is not None:
        _code_folder(job.code.path, base)


def _check_script(job: JobFile, script: str, base: Path) -> None:
    if not script:
        raise ConfigError("`train.script` is empty", hint="name a file below `code.path`")
    if job.code is None:
        raise ConfigError(
            "`train.script` needs `code`: what to push", hint="add `code: {path: .}` to the job"
        )
    folder = _code_folder(job.code.path, base)
    path = folder / script
    if Path(script).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"script {script} is outside {folder}, which is all that is pushed")
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else f"does not exist in {folder}"
        names = [] if path.is_dir() else _scripts(folder)
        near = difflib.get_close_matches(script, names, n=1, cutoff=0.5)
        raise ConfigError(f"script {script} {kind}", hint=f"did you mean {near[0]}?" if near else None)


def _refuse_pushed_secret(file: JobFile, merged: JobFile, base: Path) -> None:
    """A value in job.yaml goes to every host with the file itself, where that lies in what is pushed."""
    if merged.code is None or not base.resolve().is_relative_to(_code_folder(merged.code.path, base)):
        return
    for name, value in file.env.set.items():
        if value and name in merged.env.secrets:
            raise ConfigError(
                f"the value of {name} stands in the job file, which is pushed with `code.path`",
                hint=f"write the name into `env.secrets` and export {name}=…",
            )


def _code_folder(path: str, base: Path) -> Path:
    folder = (base / expand(path)).resolve()
    if not folder.is_dir():
        raise ConfigError(f"`code.path`: {folder} is not a folder")
    return folder


def _scripts(folder: Path) -> list[str]:
    """Python files two levels deep; enough for a suggestion, and quick in a large tree."""
    found = (path for pattern in ("*.py", "*/*.py", "*/*/*.py") for path in folder.glob(pattern))
    return [path.relative_to(folder).as_posix() for path in islice(found, FILES_SEARCHED)]


def _drained_notes(inventory: Inventory, pool: str | None) -> tuple[str, ...]:
    """A pool that is smaller than its file says must not surprise anybody."""
    names = [host.name for host in inventory.pools[pool]] if pool else [h.name for h in inventory.all_hosts()]
    reasons = [(name, inventory.drained[name]) for name in names if name in inventory.drained]
    return tuple(f"{name} is drained and left out" + (f": {why}" if why else "") for name, why in reasons)
