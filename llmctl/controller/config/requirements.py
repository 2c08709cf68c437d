"""The packages that a job's `env:` asks for: a requirements file or a list, as lines that mean one thing.

Options of a requirements file that would make the result depend on this machine (`-e`, `-r`, local paths,
indexes) are refused: pip's own configuration is the place for indexes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.errors import ConfigError
from llmctl.wire.environments import request_key
from llmctl.wire.layout import HostLayout

if TYPE_CHECKING:  # pydantic is slow to import
    from llmctl.controller.config.models import EnvSection
    from llmctl.controller.config.types import Host

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?=\s*(?:$|[\[<>=!~;@(,\s]))")
PINNED = re.compile(r"==\s*[^*,;\s]+\s*(?:;[^#]*)?--hash=sha256:[0-9a-f]{64}", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What an environment is asked to have.

    Attributes:
        lines: one requirement each, without comments, in the file's order.
        source: where they stand, for messages.
        key: the name of the request, by which hosts know the environment that stands for it.
    """

    lines: tuple[str, ...]
    source: str
    kind: str
    python: str | None
    torch: str
    key: str

    @property
    def names(self) -> tuple[str, ...]:
        """Distributions asked for, in lower case with `-`."""
        return tuple(canonical(_name(line)) for line in self.lines)

    @property
    def locked(self) -> bool:
        """Every line is pinned with a hash: nothing has to be resolved, and every machine gets the same."""
        return bool(self.lines) and all(PINNED.search(line) for line in self.lines)


def canonical(name: str) -> str:
    """The one spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of(env: EnvSection, base: Path) -> Requirements | None:
    """What the job asks for; None where it names nothing.

    Args:
        base: folder that the requirements file is relative to.

    Raises:
        ConfigError: no such file, or a line that is no requirement.
    """
    if env.requirements is None:
        return None
    if isinstance(env.requirements, str):
        path = base / env.requirements
        source, lines = str(path), _lines(_read(path), str(path))
    else:
        source, lines = "env.requirements", _lines("\n".join(env.requirements), "env.requirements")
    asked = [*lines, f"torch build {env.torch}"]
    return Requirements(
        lines=lines,
        source=source,
        kind=env.kind,
        python=env.python,
        torch=env.torch,
        key=request_key(asked, kind=env.kind, python=env.python),
    )


def env_python(env: EnvSection, host: Host) -> str | None:
    """The interpreter of the environment that the job asks for, on that host; None: the host's own `python`.

    The path is a link's, which leads to the environment that stands for the request just then.
    """
    wanted = requirements_of(env, Path())
    if wanted is None or wanted.kind == "system":
        return None
    return HostLayout(host.workdir).env_by(wanted.key) + "/bin/python"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}", hint="env.requirements names a file beside the job, or a list"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None


def _lines(text: str, source: str) -> tuple[str, ...]:
    """Whole requirements: continued lines joined, comments gone. Raises ConfigError with the line number."""
    found = []
    joined = re.sub(r"\\\n", " \x01", text)  # \x01: a line to count, not to read
    number = 1
    for raw in joined.split("\n"):
        line = re.sub(r"(^|\s)#.*", "", raw.replace("\x01", "")).strip()
        if line:
            found.append(_checked(" ".join(line.split()), source, number))
        number += 1 + raw.count("\x01")
    if not found:
        raise ConfigError(f"{source}: names no package")
    return tuple(found)


def _checked(line: str, source: str, number: int) -> str:
    where = f"{source}:{number}"
    if line.startswith("-"):
        raise ConfigError(
            f"{where}: `{line.split(maxsplit=1)[0]}` can't be used here",
            hint="one package per line; indexes belong in pip's configuration (pip config set …)",
        )
    name = NAME.match(line)
    if name is None or line.startswith((".", "/")):
        raise ConfigError(f"{where}: `{line}` is no requirement", hint="write it as: torch>=2.6")
    if "@" in line[name.end() :].partition(";")[0]:
        raise ConfigError(
            f"{where}: `{name[0]}` by URL or path has no version to lock",
            hint="build a wheel of it and let pip find it: pip config set global.find-links DIR",
        )
    return line


def _name(line: str) -> str:
    match = NAME.match(line)
    return match[0] if match else line
