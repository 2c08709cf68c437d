"""Flags and environment on top of a job file: `--set a.b=1`, `--name`, `-j 2x4`, `LLMCTL_NODES=2`.

The merged job goes through the same model as the file, so a wrong value is told the same way; only the
place in front of the message is the flag instead of a line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from llmctl.controller.config.checking import check, inner_type, type_at
from llmctl.controller.config.models import JobFile
from llmctl.controller.config.yamlfile import Loc, parse_yaml
from llmctl.errors import ConfigError

ENV_FIELDS = {"name": "LLMCTL_NAME", "pool": "LLMCTL_POOL", "nodes": "LLMCTL_NODES"}
"""Keys of the job that an environment variable replaces; flags still win."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOverrides:
    """What the command line says beside the job file.

    Attributes:
        nodes, nproc: the two numbers of `-j 2x4`: hosts, and ranks on each.
        script_args: what stood after `--`; added to `train.args`.
        env: `--env NAME=value`; wins over the file's `env`.
        set: `--set recipe.steps=50`, in the order given.
        limit: globs of host names (`--limit`).
    """

    nodes: int | None = None
    nproc: int | None = None
    name: str | None = None
    pool: str | None = None
    script_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    set: tuple[str, ...] = ()
    limit: tuple[str, ...] = ()


NO_OVERRIDES = JobOverrides()


def parse_shape(text: str) -> tuple[int, int]:
    """`2x4` as (nodes, ranks per node). Raises ConfigError."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None:
        raise ConfigError(f"-j must be NODESxRANKS, such as 2x4, found {text!r}")
    return int(match[1]), int(match[2])


def parse_assignment(text: str, flag: str) -> tuple[str, str]:
    """`KEY=value` of a repeatable flag as (key, value). Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{flag} wants KEY=value, found {text!r}")
    return key, value


def apply_overrides(job: JobFile, overrides: JobOverrides, environ: Mapping[str, str]) -> JobFile:
    """The job with environment, `--set` and flags applied, the strongest last. Raises ConfigError."""
    merge = _Merge(job.model_dump(by_alias=True, exclude_unset=True))
    for key, variable in ENV_FIELDS.items():
        if environ.get(variable):
            merge.assign((key,), environ[variable], variable)
    for assignment in overrides.set:
        key, value = parse_assignment(assignment, "--set")
        merge.assign(tuple(key.split(".")), value, f"--set {key}")
    for key in ENV_FIELDS:
        if getattr(overrides, key) is not None:
            merge.put((key,), getattr(overrides, key), "-j" if key == "nodes" else f"--{key}")
    for name, value in overrides.env.items():
        merge.put(("env", "set", name), value, f"--env {name}")
        merge.drop(("env", "pass"), name)
    if overrides.script_args:
        merge.put(("train", "args"), [*job.train.args, *overrides.script_args], "arguments after --")
    return check(JobFile, merge.data, what="the job", where=merge.where)


class _Merge:
    """The job's plain values while they change, and which flag put each there."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self._origins: dict[Loc, str] = {}

    def where(self, loc: Loc) -> str:
        """The flag that wrote at `loc`, around it or, for a key that is still missing, beside it."""
        for end in range(len(loc), 0, -1):
            if loc[:end] in self._origins:
                return self._origins[loc[:end]]
        inside = [origin for place, origin in self._origins.items() if place[: len(loc) - 1] == loc[:-1]]
        return inside[0] if inside else "the job"

    def assign(self, loc: tuple[str, ...], text: str, origin: str) -> None:
        """Text from a flag, as the type that the model has at that place."""
        if not all(loc):
            raise ConfigError(f"{origin}: an empty name between the dots")
        kind = type_at(JobFile, loc)
        keep = _is_text(kind) and text != "null"
        self.put(loc, text if keep or not text else parse_yaml(text, origin).data, origin)

    def put(self, loc: tuple[str, ...], value: Any, origin: str) -> None:
        section = self.data
        for depth, part in enumerate(loc[:-1]):
            if section.get(part) is None:
                self._origins.setdefault(loc[: depth + 1], origin)
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                place = ".".join(loc[: depth + 1])
                raise ConfigError(f"{origin}: `{place}` has no keys below it")
        section[loc[-1]] = value
        self._origins[loc] = origin

    def drop(self, loc: tuple[str, str], item: str) -> None:
        section = self.data.get(loc[0]) or {}
        if item in (section.get(loc[1]) or []):
            section[loc[1]] = [other for other in section[loc[1]] if other != item]


def _is_text(kind: Any) -> bool:
    kind = inner_type(kind)
    if get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in get_args(kind))
    return kind is str
