"""The files that `llmctl init` and `llmctl demo` lay down: templates/ of the source tree or of the wheel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import llmctl
from llmctl.errors import ConfigError


def _own(name: str) -> tuple[str, ...]:
    """A model of your own on two local hosts, with a script that makes its samples."""
    files = (f"{name}/{file}" for file in ("job.yaml", "train.py", "data.py"))
    return ("local/hosts.yaml", *files, ".llmctlignore")


TEMPLATES: dict[str, tuple[str, ...]] = {
    "recipe": ("hosts.yaml", "recipe/job.yaml", ".llmctlignore"),
    "script": ("hosts.yaml", "script/job.yaml", "script/train.py", ".llmctlignore"),
    "text": _own("text"),
    "image": _own("image"),
    "speech": _own("speech"),
    "demo": ("demo/hosts.yaml", "demo/job.yaml"),
}
"""Name of a template -> its files below templates/; each is laid down under its last name."""


def template_dir() -> Path:
    """The folder of templates. Raises FileNotFoundError where an installation lost it."""
    package = Path(llmctl.__file__).parent
    for folder in (package / "templates", package.parent / "templates"):
        if (folder / "hosts.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no templates beside {package}: reinstall llmctl")


def template_text(file: str, values: Mapping[str, str] | None = None) -> str:
    """The text of one template file, `@NAME@` replaced by `values["NAME"]`."""
    text = (template_dir() / file).read_text(encoding="utf-8")
    for name, value in (values or {}).items():
        text = text.replace(f"@{name}@", value)
    return text


def lay_down(
    name: str,
    into: Path,
    *,
    values: Mapping[str, str] | None = None,
    force: bool = False,
    keep: bool = False,
) -> tuple[Path, ...]:
    """Write a template's files into a folder, made if needed; the paths written.

    Args:
        force: replace files that are there.
        keep: leave files that are there as they are.

    Raises:
        ConfigError: no such template, the folder can't be written, or a file is there and neither `force`
            nor `keep` is given.
    """
    if name not in TEMPLATES:
        raise ConfigError(f"no template `{name}`", hint=f"there are: {', '.join(TEMPLATES)}")
    try:
        return _lay_down(name, into, values, force=force, keep=keep)
    except OSError as error:
        raise ConfigError(f"{error.filename or into}: {error.strerror}", hint="name another folder") from None


def _lay_down(
    name: str, into: Path, values: Mapping[str, str] | None, *, force: bool, keep: bool
) -> tuple[Path, ...]:
    files = {into / Path(file).name: file for file in TEMPLATES[name]}
    there = [path for path in files if path.exists()]
    if there and not (force or keep):
        raise ConfigError(f"{there[0]} is already there", hint="--force replaces it")
    into.mkdir(parents=True, exist_ok=True)
    wanted = {path: file for path, file in files.items() if not (keep and path in there)}
    for path, file in wanted.items():
        _write(path, template_text(file, values))
    return tuple(wanted)


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
