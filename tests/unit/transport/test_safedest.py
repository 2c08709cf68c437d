"""A host can name any path; only those below the folder are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmctl.controller.transport.safedest import safe_file
from llmctl.errors import IntegrityError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    return tmp_path / "root"


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "a//b", "", ".", "./a", "a/", "a\0b"])
def test_path_that_leaves_is_refused(root: Path, path: str) -> None:
    """Absolute, `..`, empty and odd parts: nothing is opened."""
    with pytest.raises(IntegrityError), safe_file(root, path):
        raise AssertionError("opened")
    assert list(root.iterdir()) == []


def test_folder_that_is_a_link_is_refused(root: Path) -> None:
    """A link inside the folder is never followed, whoever made it."""
    (root / "a").symlink_to("../outside")
    with pytest.raises(IntegrityError, match="link"), safe_file(root, "a/file"):
        raise AssertionError("opened")
    assert list((root / "../outside").iterdir()) == []


def test_file_that_is_a_link_is_replaced_not_followed(root: Path) -> None:
    """A whole file takes the place of a link; a growing one refuses it."""
    (root / "../outside/victim").write_text("safe")
    (root / "log").symlink_to("../outside/victim")
    with pytest.raises(IntegrityError), safe_file(root, "log", offset=1):
        raise AssertionError("opened")
    with safe_file(root, "log") as file:
        file.write(b"new")
        file.keep()
    assert (root / "log").read_text() == "new"
    assert (root / "../outside/victim").read_text() == "safe"


def test_without_keep_nothing_stays(root: Path) -> None:
    """A file that was not found whole leaves the old one, and no rest."""
    (root / "a").write_text("old")
    with safe_file(root, "a") as file:
        file.write(b"half")
    assert [(p.name, p.read_text()) for p in root.iterdir()] == [("a", "old")]


def test_growing_file_goes_on_at_its_offset(root: Path) -> None:
    """Bytes behind the offset are replaced; a file shorter than the offset is refused."""
    (root / "log").write_text("abcXX")
    with safe_file(root, "log", offset=3) as file:
        file.write(b"def")
    assert (root / "log").read_text() == "abcdef"
    with pytest.raises(IntegrityError, match="fewer bytes"), safe_file(root, "log", offset=99):
        raise AssertionError("opened")
