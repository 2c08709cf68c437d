"""A YAML file as plain values, with the line of every key: strict, safe, YAML 1.2 scalars.

PyYAML's C parser does the parsing (measured: it starts in 19 ms, ruamel.yaml in 25 ms, and a large inventory
parses many times faster). Only its nodes are used: the scalars are resolved here by the YAML 1.2 core schema,
because under PyYAML's own 1.1 rules `no` is false, `1e-3` is text and `22:22` is 1342.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmctl.errors import ConfigError

Loc = tuple[str | int, ...]
"""Keys and list positions from the root to a value."""

MAX_VALUES = 100_000
MAX_DEPTH = 50
MAX_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A parsed file: `data` in plain Python values, `lines` from each value's place to its line (from 1)."""

    path: str
    data: Any
    lines: dict[Loc, int]

    def where(self, loc: Loc) -> str:
        """`job.yaml:12`: the line of the value at `loc`, or of the nearest thing around it."""
        while loc and loc not in self.lines:
            loc = loc[:-1]
        return f"{self.path}:{self.lines.get(loc, 1)}"


def read_yaml(path: str | Path, *, missing_hint: str = "llmctl init writes a commented one") -> Document:
    """The one YAML document in the file at `path`.

    Raises:
        ConfigError: missing, a folder, unreadable, not UTF-8, not YAML, empty, or a key is there twice.
    """
    return parse_yaml(_read_text(Path(path), missing_hint), str(path))


def parse_yaml(text: str, path: str) -> Document:
    """The one YAML document in `text`; `path` is what errors call it. Raises ConfigError."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_message(error, path), hint=_tab_hint(error)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if root is None:
        raise ConfigError(f"{path}: the file is empty", hint="llmctl init writes a commented one")
    builder = _Builder(path)
    return Document(path=path, data=builder.build(root, ()), lines=builder.lines)


def parse_scalar(text: str) -> Any:
    """A YAML 1.2 plain scalar as a Python value; whatever is no number, bool or null is text."""
    for pattern, convert in _CORE_SCHEMA:
        if pattern.fullmatch(text):
            return convert(text)
    return text


def _read_text(path: Path, missing_hint: str) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", hint=missing_hint) from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, not a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} has {len(raw)} bytes: too large for a configuration file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text (byte {error.start})") from None


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # built without libyaml: slower
    """No implicit types: a plain scalar stays text until `parse_scalar` has seen it."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute


_CORE_SCHEMA = (
    (re.compile(r"|~|null|Null|NULL"), lambda _text: None),
    (re.compile(r"true|True|TRUE"), lambda _text: True),
    (re.compile(r"false|False|FALSE"), lambda _text: False),
    (re.compile(r"[-+]?[0-9]{1,400}"), int),
    (re.compile(r"0o[0-7]+"), lambda text: int(text[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda text: int(text[2:], 16)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)"), lambda text: float(text.replace(".", ""))),
    (re.compile(r"\.(nan|NaN|NAN)"), lambda _text: float("nan")),
)

_PLAIN_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Builder:
    """Nodes to values, noting lines; refuses what a configuration has no use for."""

    def __init__(self, path: str) -> None:
        self.lines: dict[Loc, int] = {}
        self._path = path
        self._values = 0

    def build(self, node: yaml.Node, loc: Loc) -> Any:
        self._admit(node, loc)
        self.lines.setdefault(loc, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*loc, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)  # noqa: S101 - composing makes no fourth kind
        return node.value if node.style else parse_scalar(node.value)

    def _admit(self, node: yaml.Node, loc: Loc) -> None:
        """Aliases let a short text mean a huge or endless value: count what they expand to."""
        self._values += 1
        if self._values > MAX_VALUES or len(loc) > MAX_DEPTH:
            raise self._error(node, "too many or too deeply nested values (an alias inside itself?)")
        if node.tag not in _PLAIN_TAGS:
            raise self._error(node, f"the tag `{node.tag}` has no meaning here")

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        pairs = list(self._keys(node))
        merged: dict[str, Any] = {}
        for key, value in pairs:
            if key.value == "<<" and not key.style:
                self._merge(value, loc, merged)
        own: dict[str, Any] = {}
        for key, value in pairs:
            if key.value != "<<" or key.style:
                place = (*loc, key.value)
                own[key.value] = self.build(value, place)
                self.lines[place] = key.start_mark.line + 1
        return {**merged, **own}

    def _keys(self, node: yaml.MappingNode) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a key must be text")
            if key.value in seen:
                raise self._error(key, f"key `{key.value}` is already set in line {seen[key.value]}")
            seen[key.value] = key.start_mark.line + 1
            yield key, value

    def _merge(self, node: yaml.Node, loc: Loc, merged: dict[str, Any]) -> None:
        """`<<: *anchor`, or a list of them: an earlier one wins, the mapping's own keys win over all."""
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            value = self.build(source, loc)
            if not isinstance(value, dict):
                raise self._error(node, "`<<` merges mappings only")
            for key, item in value.items():
                merged.setdefault(key, item)

    def _error(self, node: yaml.Node, message: str) -> ConfigError:
        return ConfigError(f"{self._path}:{node.start_mark.line + 1}: {message}")


def _syntax_message(error: yaml.MarkedYAMLError, path: str) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
    context = f" ({error.context})" if error.context else ""
    return f"{place}: not YAML: {(error.problem or '').removeprefix('but ')}{context}"


def _tab_hint(error: yaml.MarkedYAMLError) -> str | None:
    if "cannot start any token" in (error.problem or ""):
        return "YAML indents with spaces; a tab, `@` or a backquote can't start a value: quote it"
    return None
