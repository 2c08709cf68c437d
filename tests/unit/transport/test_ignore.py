"""The ignore rules are git's own: git itself is asked."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmctl.controller.transport.tree import scan

NAMES = ("a", "b", "data", "keep.txt", "x.log", "é")
PATTERNS = (
    "*.log", "data", "data/", "/data", "a/", "!keep.txt", "!a", "**/b", "a/**", "a/*", "!a/b",
    "data/**/x.log", "!/data/", "#a", "\\#a", "*", "!*/", "!*.txt", "[ab]", "a/b", "/*/b", "?",
    "!data/keep.txt", "b/", "", "/", "!", "**", "**/", "/**", "d**a", "[!a]", "[^b]*", "[]a]", "[a",
    "b ", "b\\ ", "*.tx[a-z]", "da?a/", "a/**/", "\\!b", "?.log", "*/*", "[[:alpha:]]", "[[:digit:]b]",
)  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty repository; its work tree is named per question."""
    folder = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", "--bare", folder], check=True)
    return folder


def git_files(repository: Path, root: Path) -> list[str]:
    """What git would add."""
    where = [f"--git-dir={repository}", f"--work-tree={root}", "-c", "core.excludesFile=/dev/null"]
    argv = ["git", *where, "-c", "core.bare=false", "ls-files", "-oz", "--exclude-standard"]
    listed = subprocess.run(argv, capture_output=True, check=True, cwd=root).stdout
    return sorted(name.decode() for name in listed.split(b"\0") if name)


def make(root: Path, files: list[str], content: str = "x") -> None:
    for file in files:
        path = root / file
        if path.is_dir() or any(parent.is_file() for parent in path.parents):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def pushed(root: Path, cache: Path) -> list[str]:
    return sorted(entry.path for entry in scan(root, cache_dir=cache).entries)


paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join)
rules = st.lists(st.sampled_from(PATTERNS), max_size=5).map(lambda lines: "".join(f"{x}\n" for x in lines))


@settings(max_examples=100, deadline=None)
@given(
    files=st.lists(paths, min_size=1, max_size=12), top=rules, nested=rules, where=st.sampled_from(NAMES[:3])
)
@example(files=["a/a/b"], top="", nested="/**\n!a\n", where="a")
def test_same_files_as_git(repository: Path, files: list[str], top: str, nested: str, where: str) -> None:
    """Whatever the patterns, exactly the files that git would add are pushed."""
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder, "root"), Path(folder, "cache")
        root.mkdir()
        make(root, files)
        (root / ".gitignore").write_text(top)
        if (root / where).is_dir():
            (root / where / ".gitignore").write_text(nested)
        ours = pushed(root, cache)
        assert ours == git_files(repository, root)
        assert pushed(root, cache) == ours, "a second scan, from the cache, differs"


def test_folder_inside_a_repository(tmp_path: Path) -> None:
    """Rules of the repository above the pushed folder count, its .git/info/exclude too."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    make(tmp_path, ["src/a.py", "src/a.pyc", "src/out/b", "src/private"])
    (tmp_path / ".gitignore").write_text("*.pyc\n/src/out/\n")
    (tmp_path / ".git/info/exclude").write_text("private\n")
    assert pushed(tmp_path / "src", tmp_path / "cache") == ["a.py"]


def test_llmctlignore_has_the_last_word(tmp_path: Path) -> None:
    """.llmctlignore takes back in what git ignores, and leaves out what git has."""
    make(tmp_path, ["data/tokens", "notes.md", "train.py"])
    (tmp_path / ".gitignore").write_text("data/\n")
    (tmp_path / ".llmctlignore").write_text("!data/\n*.md\n.*ignore\n")
    assert pushed(tmp_path, tmp_path / "../cache") == ["data/tokens", "train.py"]


@pytest.mark.parametrize("file", [".gitignore", ".llmctlignore"])
def test_changed_rules_outdate_the_cache(tmp_path: Path, file: str) -> None:
    """A decision from the cache never outlives the rules that made it."""
    root = tmp_path / "root"
    make(root, ["a/x.log", "a/y"])
    (root / file).write_text("x.log\n")
    assert "a/x.log" not in pushed(root, tmp_path)
    (root / file).write_text("y\n")
    assert [p for p in pushed(root, tmp_path) if "/" in p] == ["a/x.log"]


def test_git_folders_are_never_pushed(tmp_path: Path) -> None:
    """.git is left out at any depth, folder or file (as submodules have it)."""
    make(tmp_path, ["sub/.git/config", "mod/.git", "mod/a"])
    assert pushed(tmp_path, tmp_path / "../cache") == ["mod/a"]
