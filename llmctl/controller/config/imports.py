"""Hosts that people already have written down elsewhere -> the text of a hosts.yaml.

Two sources: MPI and DeepSpeed hostfiles (`hostA slots=8`) and `~/.ssh/config`. Of the latter only the names
are taken: everything else is read by the transport when it connects, so that the two can't drift apart.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmctl.controller.config.fields import HOST_NAME, NAME, PATTERN_WORDS
from llmctl.controller.config.models import HostEntry
from llmctl.controller.config.places import expand
from llmctl.controller.config.yamlfile import parse_scalar
from llmctl.errors import ConfigError

MAX_INCLUDE_DEPTH = 16
"""As in OpenSSH."""

_TARGET = re.compile(r"(?:(?P<user>[^@\s\0]+)@)?(?P<addr>\[[^\]]+\]|[^:\s]+)(?::(?P<number>[0-9]+))?")


def import_hostfile(text: str, *, source: str = "hostfile") -> tuple[HostEntry, ...]:
    """The hosts of an MPI or DeepSpeed hostfile, in order: `[user@]addr[:port] [slots=N]`, `#` comments.

    A host in several lines has the sum of their slots, as in Open MPI. `addr:N` alone is refused: MPICH
    means N processes by it and ssh means a port.

    Raises:
        ConfigError: a line that is not of this form, or no host at all.
    """
    entries: dict[str, HostEntry] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split("#", 1)[0].strip()
        if line:
            entry = _hostfile_entry(line, f"{source}:{number}")
            known = entries.get(entry.name)
            entries[entry.name] = _add_slots(known, entry, f"{source}:{number}") if known else entry
    if not entries:
        raise ConfigError(f"{source} names no host")
    return tuple(entries.values())


def import_ssh_config(path: str | Path) -> tuple[HostEntry, ...]:
    """Every `Host` name without a wildcard in an ssh client configuration, `Include` followed, in order.

    Raises:
        ConfigError: the file can't be read, or names no host.
    """
    path = expand(path)
    if not path.exists():
        raise ConfigError(f"{path} does not exist", hint="name another file, or a hostfile")
    return _ssh_entries(_ssh_text(path), path)


def _ssh_entries(text: str, path: Path) -> tuple[HostEntry, ...]:
    names = dict.fromkeys(_ssh_names(text, path, path.parent, depth=0))
    usable = [name for name in names if re.fullmatch(HOST_NAME, name)]
    if not usable:
        raise ConfigError(f"{path} has no `Host` line with a plain name")
    return tuple(HostEntry(name=name, addr=name) for name in usable)


def import_file(path: str | Path) -> tuple[HostEntry, ...]:
    """The hosts of either kind of file: an ssh configuration is known by its `Host` or `Include` lines.

    Raises:
        ConfigError: the file can't be read, or names no host.
    """
    path = expand(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}", hint="name a hostfile or an ssh config") from None
    if re.search(r"(?im)^\s*(host|include|match)[\s=]", text):
        return _ssh_entries(text, path)  # not read again: a pipe has its text only once
    return import_hostfile(text, source=str(path))


def render_hosts(entries: Sequence[HostEntry], *, pool: str = "main", origin: str = "") -> str:
    """A hosts.yaml with one pool of `entries`; loading it gives the same entries again.

    Raises:
        ConfigError: `pool` can't be the name of a pool.
    """
    if not re.fullmatch(NAME, pool):
        raise ConfigError(f"--pool must be {PATTERN_WORDS[NAME]}, found {pool!r}")
    comment = f"# Imported from {origin}.\n" if origin else ""
    lines = [f"{comment}version: 1", "pools:", f"  {_scalar(pool)}:", "    hosts:"]
    for entry in entries:
        pairs = entry.model_dump(exclude_none=True, exclude_defaults=True).items()
        lines.append("      - {" + ", ".join(f"{key}: {_scalar(value)}" for key, value in pairs) + "}")
    return "\n".join(lines) + "\n"


def _hostfile_entry(line: str, where: str) -> HostEntry:
    target, *options = line.split()
    match = _TARGET.fullmatch(target)
    if match is None:
        raise ConfigError(f"{where}: {target!r} is not [user@]host[:port]")
    slots = _slots(options, where)
    port = int(match["number"]) if match["number"] else None
    if port is not None and slots is None and match["user"] is None:
        raise ConfigError(
            f"{where}: `{target}`: is {port} a port or a number of processes?",
            hint=f"write `{match['addr']} slots={port}`, or `user@{target}` for a port",
        )
    if port is not None and not 1 <= port <= 65535:
        raise ConfigError(f"{where}: {port} is not a port")
    addr = match["addr"].strip("[]")
    name = addr.replace(":", "-").strip("-")
    if not re.fullmatch(HOST_NAME, name):
        raise ConfigError(f"{where}: {addr!r} can't be a host's name")
    return HostEntry(name=name, addr=addr, user=match["user"], port=port, slots=slots)


def _slots(options: list[str], where: str) -> int | None:
    slots = None
    for option in options:
        key, _, value = option.partition("=")
        if key.lower() not in ("slots", "max_slots", "max-slots") or not re.fullmatch(
            "[1-9][0-9]{0,4}", value
        ):
            raise ConfigError(f"{where}: {option!r} is not slots=NUMBER")
        slots = int(value) if key.lower() == "slots" else slots
    return slots


def _add_slots(known: HostEntry, again: HostEntry, where: str) -> HostEntry:
    if (known.addr, known.user, known.port) != (again.addr, again.user, again.port):
        raise ConfigError(f"{where}: {known.name} is here again with another user or port")
    return known.model_copy(update={"slots": (known.slots or 1) + (again.slots or 1)})


def _ssh_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None


def _ssh_names(text: str, path: Path, root: Path, depth: int) -> Iterator[str]:
    if depth > MAX_INCLUDE_DEPTH:
        raise ConfigError(f"{path}: `Include` nests deeper than {MAX_INCLUDE_DEPTH} files")
    for number, line in enumerate(text.splitlines(), 1):
        keyword, values = _ssh_line(line, f"{path}:{number}")
        if keyword == "host":
            yield from (value for value in values if not re.search(r"[*?!]", value))
        if keyword == "include":
            for value in values:
                for included in _included(value, root):
                    yield from _ssh_names(_ssh_text(included), included, root, depth + 1)


def _ssh_line(line: str, where: str) -> tuple[str, list[str]]:
    """`Host a b`, `Host=a`, `host "a"`: the keyword in lower case and its values."""
    match = re.match(r"\s*([A-Za-z]+)\s*[=\s]\s*(.*)", line)
    if match is None or match[1].lower() not in ("host", "include"):
        return "", []
    try:
        return match[1].lower(), shlex.split(match[2], comments=True)
    except ValueError:
        raise ConfigError(f"{where}: a quote is not closed") from None


def _included(pattern: str, root: Path) -> list[Path]:
    """Relative to `root`: ~/.ssh in ssh, here the folder of the file that was named."""
    path = root.absolute() / expand(pattern)
    anchor = Path(path.anchor)
    return sorted(found for found in anchor.glob(str(path.relative_to(anchor))) if found.is_file())


def _scalar(value: str | int) -> str:
    """Text that would be read as a number, or has YAML's own signs in it, is quoted."""
    if isinstance(value, int):
        return str(value)
    plain = re.fullmatch(r"[A-Za-z0-9_/.~][A-Za-z0-9_/.@~+-]*", value) and isinstance(
        parse_scalar(value), str
    )
    return value if plain else json.dumps(value, ensure_ascii=False)
