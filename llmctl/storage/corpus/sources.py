"""From paths, globs and URLs to units of work: fixed pieces of input, the same whatever the machine.

The suffix tells what a file is: `.jsonl`/`.ndjson` has one document per line, `.parquet` one per row, every
other file is text and one document. `.gz` and `.zst` behind it are unpacked on the way.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from llmctl.errors import ConfigError, NotFoundError
from llmctl.storage.files import StoreFile, open_store
from llmctl.storage.uris import is_local, join, local_path, masked, split

UNIT_BYTES = 4 << 20
"""Input per unit: small enough that all workers finish together, large enough for its cost not to show."""

_GLOB = re.compile(r"[*?\[]")


class Kind(StrEnum):
    """What a file holds."""

    TEXT = "text"
    JSONL = "jsonl"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One input file.

    Attributes:
        root, path: its store and its path there.
        compression: `gz`, `zst` or empty.
        named: asked for by its own name; then a binary file is an error, else it is left out.
    """

    root: str
    path: str
    size: int
    version: str
    kind: Kind
    compression: str
    named: bool

    @property
    def uri(self) -> str:
        return masked(join(self.root, self.path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of a file: bytes `start` to `end`, adjusted to line or character borders by its reader.

    For parquet, row groups `start` to `end`. `bytes` is what it counts for in a progress bar.
    """

    file: SourceFile
    start: int
    end: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What one worker does at a time; `number` counts from 0 in the order of the corpus."""

    number: int
    slices: tuple[Slice, ...]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.slices)


def expand(sources: Sequence[str], *, exclude: str | None = None) -> list[SourceFile]:
    """All files that `sources` name, each once, sorted by URL.

    Hidden files and `__pycache__` are left out of folders, and so is what lies below `exclude`.

    Raises:
        NotFoundError: a source that is not there, or a glob or folder without a file.
        ConfigError: no source at all, or a URL that means nothing.
    """
    if not sources:
        raise ConfigError("no source given", hint="name files, folders, globs or URLs")
    found: dict[str, SourceFile] = {}
    for source in sources:
        for file in _expand_one(source):
            if exclude is None or not file.uri.startswith(exclude.rstrip("/") + "/"):
                found.setdefault(file.uri, file)
    if not found:
        raise NotFoundError(f"no file in {', '.join(masked(source) for source in sources)}")
    return [found[uri] for uri in sorted(found)]


def units(files: Iterable[SourceFile], field: str) -> Iterator[Unit]:
    """The files cut and grouped into units; depends on nothing but the files.

    Raises:
        ConfigError: a parquet file has no column `field`, or pyarrow is not installed.
    """
    number, size = 0, 0
    group: list[Slice] = []
    for part in (part for file in files for part in _slices(file, field)):
        if group and size + part.bytes > UNIT_BYTES:
            yield Unit(number=number, slices=tuple(group))
            number, group, size = number + 1, [], 0
        group.append(part)
        size += part.bytes
    if group:
        yield Unit(number=number, slices=tuple(group))


def fingerprint(files: Iterable[SourceFile]) -> str:
    """Changes whenever a file of the input is added, removed, resized or rewritten."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.uri}\0{file.size}\0{file.version}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def no_such_field(where: str, field: str, known: Iterable[str]) -> ConfigError:
    """The error for a missing key or column, with the nearest one that is there."""
    names = sorted(known)
    near = difflib.get_close_matches(field, names, n=1, cutoff=0.5)
    shown = ", ".join(names[:8]) or "none"
    hint = f"did you mean --field {near[0]}?" if near else f"its keys: {shown}; choose one with --field"
    return ConfigError(f"{where}: no key `{field}`", hint=hint)


def _expand_one(source: str) -> list[SourceFile]:
    folder, name = split(source)
    try:
        return [_source_file(folder, open_store(folder).info(name), named=True)]
    except NotFoundError:
        pass
    root, pattern = _split_glob(source)
    matches = _glob_regex(pattern).fullmatch if pattern else _is_visible
    listed = [file for file in open_store(root).list() if matches(file.path)]
    if not listed:
        raise NotFoundError(
            f"{masked(source)}: "
            + ("no file matches" if pattern else "no such file, or a folder without any")
        )
    return [_source_file(root, file, named=False) for file in listed]


def _source_file(root: str, file: StoreFile, *, named: bool) -> SourceFile:
    stem, compression = file.path.lower(), ""
    for suffix in ("gz", "zst"):
        if stem.endswith("." + suffix):
            stem, compression = stem[: -len(suffix) - 1], suffix
    kind = Kind.TEXT
    if stem.endswith((".jsonl", ".ndjson")):
        kind = Kind.JSONL
    elif stem.endswith(".parquet"):
        kind = Kind.PARQUET
    return SourceFile(
        root=root,
        path=file.path,
        size=file.size,
        version=file.version,
        kind=kind,
        compression=compression,
        named=named,
    )


def _slices(file: SourceFile, field: str) -> Iterator[Slice]:
    if file.kind is Kind.PARQUET:
        from llmctl.storage.corpus.parquet import row_groups

        for group, size in enumerate(row_groups(file, field)):
            yield Slice(file=file, start=group, end=group + 1, bytes=size)
    elif file.compression:
        # A compressed stream can't be entered in the middle.
        yield Slice(file=file, start=0, end=file.size, bytes=file.size)
    else:
        for start in range(0, file.size, UNIT_BYTES):
            end = min(start + UNIT_BYTES, file.size)
            yield Slice(file=file, start=start, end=end, bytes=end - start)


def _is_visible(path: str) -> bool:
    return not any(part.startswith(".") or part == "__pycache__" for part in path.split("/"))


def _split_glob(source: str) -> tuple[str, str]:
    """(folder, pattern below it); no pattern where there is no `*`, `?` or `[`."""
    if is_local(source):
        source = str(local_path(source))
    found = _GLOB.search(source)
    if not found:
        return source, ""
    cut = source.rindex("/", 0, found.start())
    folder = source[:cut] or "/"
    return (folder + "//" if folder.endswith(":/") else folder), source[cut + 1 :]


def _glob_regex(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay inside one folder, `**` crosses folders, `[ab]` is a set."""
    out = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", pattern, re.S):
        special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(token)
        if special is None and len(token) > 1:
            special = token.replace("[!", "[^")
        out.append(re.escape(token) if special is None else special)
    return re.compile("".join(out), re.S)
