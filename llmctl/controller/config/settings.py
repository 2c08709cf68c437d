"""Settings of the tool itself: flag > `LLMCTL_*` > ./llmctl.yaml > ~/.config/llmctl/config.yaml > default.

Every value knows where it came from. Without a file neither YAML nor pydantic is imported: this runs at
every start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llmctl.controller.config.places import (
    PROJECT_CONFIG,
    USER_CONFIG,
    expand,
    user_config_dir,
    user_state_dir,
)
from llmctl.errors import ConfigError

PREFIX = "LLMCTL_"

OUTPUTS = ("text", "json")
COLORS = ("auto", "always", "never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The tool's settings.

    Attributes:
        hosts: hosts file; None: the usual places (`find_inventory`).
        pool: pool for jobs that name none.
        output: `text` or `json`.
        color: `auto`, `always` or `never`.
        connect_timeout_s: seconds for one host to answer.
        state_dir: the ledger and the stat cache of pushes.
        origins: where each value came from: `--output`, `LLMCTL_OUTPUT`, `llmctl.yaml:3`, `default`.
    """

    hosts: str | None = None
    pool: str | None = None
    output: str = "text"
    color: str = "auto"
    connect_timeout_s: float = 10.0
    state_dir: str
    origins: dict[str, str] = field(default_factory=dict)


SETTING_NAMES = tuple(f.name for f in fields(Settings) if f.name != "origins")


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str],
    cwd: Path,
) -> Settings:
    """All sources merged; a flag that is None was not given. Raises ConfigError."""
    values: dict[str, Any] = {"state_dir": str(user_state_dir(environ))}
    origins = dict.fromkeys(SETTING_NAMES, "default")
    for path in (user_config_dir(environ) / USER_CONFIG, cwd / PROJECT_CONFIG):
        if path.exists():
            _take(values, origins, *_from_file(path))
    _take(values, origins, *_from_environment(environ))
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    _take(values, origins, given, {name: "--" + name.replace("_", "-") for name in given})
    return Settings(**values, origins=origins)


def _take(
    values: dict[str, Any], origins: dict[str, str], new: dict[str, Any], where: dict[str, str]
) -> None:
    values.update(new)
    origins.update(where)


def _from_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    from llmctl.controller.config.checking import check_document
    from llmctl.controller.config.models import SettingsFile
    from llmctl.controller.config.yamlfile import read_yaml

    document = read_yaml(path)
    parsed = check_document(SettingsFile, document, "the settings")
    values = parsed.model_dump(exclude_unset=True, exclude_none=True, exclude={"version"})
    for name in ("hosts", "state_dir"):
        if name in values:
            values[name] = str(path.parent / expand(values[name]))
    return values, {name: document.where((name,)) for name in values}


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    for name in SETTING_NAMES:
        variable = PREFIX + name.upper()
        if environ.get(variable):
            values[name] = _PARSERS.get(name, _text)(environ[variable], variable)
    if environ.get("NO_COLOR") and "color" not in values:
        return {**values, "color": "never"}, {**_variables(values), "color": "NO_COLOR"}
    return values, _variables(values)


def _variables(values: dict[str, Any]) -> dict[str, str]:
    return {name: PREFIX + name.upper() for name in values}


def _text(value: str, _variable: str) -> str:
    return value


def _choice(choices: tuple[str, ...]) -> Callable[[str, str], str]:
    def parse(value: str, variable: str) -> str:
        if value not in choices:
            raise ConfigError(f"{variable} must be {' or '.join(choices)}, found {value!r}")
        return value

    return parse


def _seconds(value: str, variable: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{variable} must be a number of seconds greater than 0, found {value!r}")
    return seconds


_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "output": _choice(OUTPUTS),
    "color": _choice(COLORS),
    "connect_timeout_s": _seconds,
    "state_dir": lambda value, _variable: str(expand(value)),
}
