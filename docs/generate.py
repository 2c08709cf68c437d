"""Writes the parts of docs/ that code already knows, so that they can't drift from it.

A page is written by hand; between `<!-- generated: NAME -->` and `<!-- end -->` stands what NAME's function
here returns. `python docs/generate.py` rewrites those parts; `--check` prints a diff and exits with 1 if one
is stale (CI and a unit test run that).
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llmctl.controller.config import models, overrides, settings
from llmctl.wire import environment, exitcodes, layout, manifests, metrics, records, specs

DOCS = Path(__file__).parent
MARK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(arguments: list[str]) -> int:
    check = arguments == ["--check"]
    if arguments and not check:
        sys.stderr.write("usage: docs/generate.py [--check]\n")
        return 2
    stale = 0
    for page in sorted((DOCS.parent / "README.md", *DOCS.rglob("*.md"))):
        old = page.read_text(encoding="utf-8")
        new = fill(old)
        if new == old:
            continue
        stale += 1
        if check:
            name = str(page.relative_to(DOCS.parent))
            sys.stdout.writelines(
                difflib.unified_diff(old.splitlines(True), new.splitlines(True), name, name)
            )
        else:
            page.write_text(new, encoding="utf-8")
            sys.stdout.write(f"wrote {page.relative_to(DOCS.parent)}\n")
    if check and stale:
        sys.stderr.write(f"{stale} stale page(s): run `make docs`\n")
    return int(check and stale > 0)


def fill(page: str) -> str:
    """The page with every generated part as it should be."""
    return MARK.sub(lambda match: f"{match[1]}\n{BLOCKS[match[2]]().strip()}\n\n{match[3]}", page)


# --- configuration files ---


def job_keys() -> str:
    return "".join(_model_section(models.JobFile, ""))


def hosts_keys() -> str:
    return "".join(_model_section(models.HostsFile, ""))


def settings_keys() -> str:
    return "".join(_model_section(models.SettingsFile, ""))


def _model_section(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """A table of the model's own keys, then one section per nested model."""
    heading = f"### `{prefix}`\n\n" if prefix else ""
    yield f"{heading}{inspect.getdoc(model)}\n\n| key | type | default | meaning |\n|---|---|---|---|\n"
    for name, field in model.model_fields.items():
        cells = (f"`{field.alias or name}`", _type_words(field), _default(field), str(field.description))
        yield f"| {' | '.join(cells)} |\n"
    yield "\n"
    for name, field in model.model_fields.items():
        for nested, suffix in _nested(field.annotation):
            yield from _model_section(nested, f"{prefix}{'.' if prefix else ''}{field.alias or name}{suffix}")


def _nested(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
        return
    suffix = {list: "[]", dict: ".<name>"}.get(typing.get_origin(annotation), "")
    for part in typing.get_args(annotation):
        for model, rest in _nested(part):
            yield model, suffix + rest


_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def _type_words(field: FieldInfo) -> str:
    words = _words_of(field.annotation)
    limits = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {getattr(rule, key):g}"
        for rule in field.metadata
        for key, sign in limits.items()
        if getattr(rule, key, None) is not None
    ]
    return ", ".join((words, *bounds))


def _words_of(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words_of(parts[0])
    if origin is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words_of(part) for part in parts if part is not type(None))
    if origin is list:
        return f"list of {_words_of(parts[0])}"
    if origin is dict:
        return f"mapping of names to {_words_of(parts[1])}"
    return _WORDS.get(annotation, "section" if issubclass(annotation, BaseModel) else annotation.__name__)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or value in (None, [], {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


# --- wire ---


def exit_codes() -> str:
    rows = (f"| {int(code)} | {exitcodes.MEANING[code]} |\n" for code in exitcodes.ExitCode)
    return "| code | meaning |\n|---:|---|\n" + "".join(rows)


def rank_environment() -> str:
    rows = (f"| `{name}` | {meaning} |\n" for name, meaning in environment.MEANING.items())
    return "| variable | value |\n|---|---|\n" + "".join(rows)


def tool_environment() -> str:
    named = {name: field.description for name, field in models.SettingsFile.model_fields.items()}
    rows = [
        f"| `{settings.PREFIX}{name.upper()}` | setting `{name}`: {named[name]} |"
        for name in settings.SETTING_NAMES
    ]
    rows += [
        f"| `{var}` | key `{key}` of the job |" for key, var in overrides.ENV_FIELDS.items() if key != "pool"
    ]
    return "| variable | replaces |\n|---|---|\n" + "\n".join(rows)


def run_layout() -> str:
    _, _, tree = (layout.__doc__ or "").partition("\n\n")
    return f"```text\n{tree.strip()}\n```"


def event_schema() -> str:
    kinds = ", ".join(f"`{kind.value}`" for kind in records.EventKind)
    return f"{_dataclass(records.Event)}\nKinds: {kinds}."


def record_schemas() -> str:
    kinds = (specs.NodeSpec, specs.LaunchSpec, specs.Peer, records.Lease, records.RankExit, records.NodeExit)
    return "\n".join(_dataclass(kind) for kind in kinds)


def metric_schemas() -> str:
    lines = (metrics.StepLine, metrics.CheckpointLine, metrics.CheckpointFailedLine, metrics.NoteLine)
    return "\n".join(_dataclass(kind) for kind in lines)


def manifest_schemas() -> str:
    kinds = (manifests.CheckpointManifest, manifests.ShardManifest, manifests.ShardEntry, manifests.FileEntry)
    return "\n".join(_dataclass(kind) for kind in kinds)


def _dataclass(kind: type[Any]) -> str:
    """Docstring and keys of a wire type."""
    text, _, attributes = (inspect.getdoc(kind) or "").partition("\n\nAttributes:\n")
    meanings = re.sub(r"^    (\w[\w, ]*):", r"- `\1`:", attributes, flags=re.MULTILINE)
    keys = "\n".join(f"{field.name}: {_annotation(field)}" for field in dataclasses.fields(kind))
    return f"### {kind.__name__}\n\n{text}\n\n```text\n{keys}\n```\n\n{meanings}".rstrip() + "\n"


def _annotation(field: dataclasses.Field[Any]) -> str:
    kind = str(field.type)
    if kind.startswith("Optional["):
        kind = kind.removeprefix("Optional[").removesuffix("]")
    has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    return f"{kind}{'   (may be absent)' if has_default else ''}"


# --- command line and import rules ---


def command_line() -> str:
    import typer.main

    from llmctl.controller.cli.app import app

    return "\n".join(_command(typer.main.get_command(app), "llmctl"))


def command_table() -> str:
    import typer.main

    from llmctl.controller.cli.app import app

    root: Any = typer.main.get_command(app)
    rows = (
        f"| `llmctl {name}` | {command.get_short_help_str(300)} |\n"
        for name, command in root.commands.items()
        if not command.hidden
    )
    return "| command | what it does |\n|---|---|\n" + "".join(rows)


def _command(command: Any, path: str) -> Iterator[str]:
    """One section per command; groups first say what is in them."""
    depth = min(path.count(" ") + 2, 4)
    yield f"{'#' * depth} `{path}`\n\n{inspect.cleandoc(command.help or '').replace(chr(8), '')}\n"
    rows = [row for row in (_parameter(param) for param in command.params) if row]
    if rows:
        yield "| option or argument | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"
    if examples := [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("    ")]:
        yield "```console\n" + "\n".join(f"$ {line}" for line in examples) + "\n```\n"
    for name, nested in getattr(command, "commands", {}).items():
        if nested.hidden:
            continue
        yield from _command(nested, f"{path} {name}")


def _parameter(param: Any) -> str | None:
    if getattr(param, "hidden", False) or param.name in ("install_completion", "show_completion", "help"):
        return None
    if param.param_type_name == "argument":
        names = f"`{param.metavar or param.name.upper()}`"
    else:
        names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
    return (
        f"| {names} | {' '.join((getattr(param, 'help', None) or '').split()).replace('|', chr(92) + '|')} |"
    )


def import_rules() -> str:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    return "".join(_contract(contract) for contract in project["tool"]["importlinter"]["contracts"])


def _contract(contract: dict[str, Any]) -> str:
    if contract["type"] == "layers":
        return f"- {contract['name']}: {' > '.join(_short(layer) for layer in contract['layers'])}\n"
    if contract["type"] == "independence":
        return f"- {contract['name']}\n"
    sources = ", ".join(_short(module) for module in contract["source_modules"])
    targets = ", ".join(_short(module) for module in contract["forbidden_modules"])
    return f"- {contract['name']}: {sources} import none of {targets}\n"


def _short(modules: str) -> str:
    return " | ".join(f"`{name.strip().removeprefix('llmctl.')}`" for name in modules.split("|"))


BLOCKS: dict[str, Callable[[], str]] = {
    "job-keys": job_keys,
    "hosts-keys": hosts_keys,
    "settings-keys": settings_keys,
    "exit-codes": exit_codes,
    "rank-environment": rank_environment,
    "tool-environment": tool_environment,
    "run-layout": run_layout,
    "event-schema": event_schema,
    "record-schemas": record_schemas,
    "metric-schemas": metric_schemas,
    "manifest-schemas": manifest_schemas,
    "command-line": command_line,
    "command-table": command_table,
    "import-rules": import_rules,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
