"""One line of a .gitignore as a regular expression over bytes, with git's own meaning.

The pathspec library lets `!folder` take back in what lies below the folder, and matches a folder by `x/**`;
git does neither. A pattern here matches a path itself, never what lies below it: a walk that doesn't enter
ignored folders needs no more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A compiled line. `ignore` is False for a line with `!`."""

    regex: re.Pattern[bytes]
    ignore: bool
    only_folders: bool

    def matches(self, path: bytes, *, is_dir: bool) -> bool:
        """Whether the line is about `path`, relative to the ignore file's folder."""
        return (is_dir or not self.only_folders) and self.regex.match(path) is not None


def compile_lines(content: bytes) -> list[Pattern]:
    """All patterns of a file, in order; the last that matches decides."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    found = (_compile(line.removesuffix(b"\r")) for line in lines)
    return [pattern for pattern in found if pattern]


def _compile(line: bytes) -> Pattern | None:
    text = _without_trailing_spaces(line)
    if not text or text.startswith(b"#"):
        return None
    ignore = not text.startswith(b"!")
    text = text if ignore else text[1:]
    only_folders = text.endswith(b"/")
    text = text.removesuffix(b"/")
    anchored = b"/" in text
    text = text.removeprefix(b"/")
    if not text:
        return None
    try:
        regex = re.compile((b"" if anchored else b"(?:.*/)?") + _translate(text) + b"\\Z", re.DOTALL)
    except (re.error, IndexError):  # git, too, lets a broken pattern match nothing
        return None
    return Pattern(regex=regex, ignore=ignore, only_folders=only_folders)


def _without_trailing_spaces(line: bytes) -> bytes:
    """A space at the end counts only behind a backslash."""
    while line.endswith(b" ") and not line.endswith(b"\\ "):
        line = line[:-1]
    return line


def _translate(text: bytes) -> bytes:
    """Segments between slashes; `**` alone in one stands for any number of folders."""
    parts = text.split(b"/")
    out = b""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == b"**":
            out += b".+" if last else b"(?:.*/)?"
        else:
            out += _segment(part) + (b"" if last else b"/")
    return out


def _segment(part: bytes) -> bytes:
    out, at = b"", 0
    while at < len(part):
        char = part[at : at + 1]
        at += 1
        if char == b"*":
            out += b"[^/]*"
        elif char == b"?":
            out += b"[^/]"
        elif char == b"[":
            group, at = _bracket(part, at)
            out += group
        elif char == b"\\":
            out += re.escape(part[at : at + 1] or b"\\")
            at += 1
        else:
            out += re.escape(char)
    return re.sub(rb"(?:\[\^/\]\*){2,}", b"[^/]*", out)


def _bracket(part: bytes, at: int) -> tuple[bytes, int]:
    """A set of characters, from behind its `[`; without an end it can't match."""
    found = _BRACKET.match(part, at)
    if not found:
        return b"(?!)", len(part)
    members = b"".join(
        _CLASSES.get(m, re.sub(rb"[\[\]\\&~|^]", rb"\\\g<0>", m)) for m in _MEMBER.findall(found[2])
    )
    return b"(?!/)[" + (b"^" if found[1] else b"") + members + b"]", found.end()


_BRACKET = re.compile(rb"([!^]?)(\]?(?:\[:[a-z]+:\]|[^\]])*)\]")
_MEMBER = re.compile(rb"\[:[a-z]+:\]|.", re.DOTALL)
_CLASSES = {
    b"[:alnum:]": b"0-9A-Za-z",
    b"[:alpha:]": b"A-Za-z",
    b"[:digit:]": b"0-9",
    b"[:lower:]": b"a-z",
    b"[:upper:]": b"A-Z",
    b"[:space:]": rb"\s",
    b"[:punct:]": rb"!-/:-@\[-`{-~",
    b"[:xdigit:]": b"0-9A-Fa-f",
}
