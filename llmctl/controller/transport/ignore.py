"""Which paths git would ignore, and which `.llmctlignore` leaves out or takes back in.

`.gitignore` files count from the repository's root down to the path's own folder, the nearest last;
`.llmctlignore` has the same syntax and the last word.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmctl.controller.transport.gitpattern import Pattern, compile_lines

GITIGNORE, LLMCTLIGNORE = ".gitignore", ".llmctlignore"


class RuleFile:
    """One ignore file; its patterns are compiled when a path is first asked about.

    Args:
        above: the scanned root relative to this file's folder (`sub/dir/`), where the file lies above it.
        depth: length of this file's folder relative to the root (with its slash), where it lies below.
    """

    def __init__(self, content: bytes, *, above: str = "", depth: int = 0) -> None:
        self._content = content
        self._above = above
        self._depth = depth

    @cached_property
    def _patterns(self) -> list[Pattern]:
        return compile_lines(self._content)[::-1]

    def verdict(self, path: str, *, is_dir: bool) -> bool | None:
        """True: ignored; False: taken back in; None: no pattern says anything."""
        asked = os.fsencode(self._above + path[self._depth :])
        return next((p.ignore for p in self._patterns if p.matches(asked, is_dir=is_dir)), None)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that hold in one folder. `key` changes whenever any of them does."""

    key: str
    git: tuple[RuleFile, ...] = ()
    own: tuple[RuleFile, ...] = ()

    def ignores(self, path: str, *, is_dir: bool) -> bool:
        """Whether `path` (relative to the scanned root) is left out; its folder is not."""
        for files in (self.own, self.git):
            for rules in reversed(files):
                verdict = rules.verdict(path, is_dir=is_dir)
                if verdict is not None:
                    return verdict
        return False

    def below(self, folder: str, git: bytes | None, own: bytes | None) -> Rules:
        """The rules inside `folder` ("" or with its slash), which has these ignore files."""
        if git is None and own is None:
            return self
        digest = hashlib.sha256(f"{self.key} {folder}".encode(errors="surrogateescape"))
        digest.update(b"git" + (git or b"") + b"\0own" + (own or b""))
        return Rules(
            key=digest.hexdigest(),
            git=self.git if git is None else (*self.git, RuleFile(git, depth=len(folder))),
            own=self.own if own is None else (*self.own, RuleFile(own, depth=len(folder))),
        )


def rules_above(root: Path) -> Rules:
    """The rules of the git repository around `root`, without those of `root` itself."""
    digest, files = hashlib.sha256(), []
    for content, above in _files_above(root):
        digest.update(content + b"\0" + above.encode(errors="surrogateescape") + b"\0")
        files.append(RuleFile(content, above=above))
    return Rules(key=digest.hexdigest(), git=tuple(files))


def _files_above(root: Path) -> Iterator[tuple[bytes, str]]:
    top = next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), None)
    if top is None:
        return
    relative = root.relative_to(top).parts
    exclude = top / ".git" / "info" / "exclude"
    if exclude.is_file():
        yield exclude.read_bytes(), _joined(relative)
    for depth in range(len(relative)):
        file = top.joinpath(*relative[:depth], GITIGNORE)
        if file.is_file():
            yield file.read_bytes(), _joined(relative[depth:])


def _joined(parts: tuple[str, ...]) -> str:
    return "".join(part + "/" for part in parts)
