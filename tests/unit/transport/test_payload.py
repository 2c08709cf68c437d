"""What travels between two trees is exactly their difference."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from hypothesis import given
from hypothesis import strategies as st

from llmctl.controller.transport.payload import delta
from llmctl.controller.transport.tree import Tree
from llmctl.controller.transport.treecache import SUBFOLDER, Folder, Records


def tree(files: dict[str, str]) -> Tree:
    """A tree value from path -> content mark."""
    found: dict[str, Records] = {"": {}}
    for path, mark in files.items():
        for folder in PurePosixPath(path).parents[-2::-1]:
            up = "" if "/" not in str(folder) else f"{folder.parent}/"
            found[up][f"{folder.name}/"] = SUBFOLDER
            found.setdefault(f"{folder}/", {})
        prefix, slash, name = path.rpartition("/")
        found[prefix + slash][name] = (0, 0, 1, 0, 0, "f", mark, "")
    return Tree.of(Path(), {prefix: Folder.of(prefix, "", records) for prefix, records in found.items()})


def removed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    return [p.decode() for p in delta(tree(old).manifest, tree(new)).remove.split(b"\0") if p]


def test_change_and_deletion() -> None:
    """A changed file is removed (never written through a hard link) and sent; a deleted one only removed."""
    old, new = {"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2"}
    assert [e.path for e in delta(tree(old).manifest, tree(new)).send] == ["b"]
    assert removed(old, new) == ["b", "c"]


def test_file_becomes_folder_and_back() -> None:
    """What stands in the way goes first, a vanished folder as a whole."""
    assert removed({"x": "1"}, {"x/y": "1"}) == ["x"]
    assert removed({"x/y/a": "1", "x/y/b": "1", "k": "1"}, {"x": "1", "k": "1"}) == ["x"]


def test_no_base_sends_all() -> None:
    """Without a base everything travels and nothing is removed."""
    change = delta(b"", tree({"a": "1", "b": "1"}))
    assert (len(change.send), change.remove) == (2, b"")


parts = st.sampled_from(["a", "b", "c c", "é"])
trees = st.dictionaries(
    st.lists(parts, min_size=1, max_size=3).map("/".join), st.sampled_from("12"), max_size=8
)


def consistent(files: dict[str, str]) -> dict[str, str]:
    """Without paths that lie below a file."""
    return {p: m for p, m in files.items() if not any(p.startswith(other + "/") for other in files)}


@given(old=trees, new=trees)
def test_applied_it_gives_the_new_tree(old: dict[str, str], new: dict[str, str]) -> None:
    """Remove, then unpack: the old tree becomes the new one, and nothing is unpacked over a file."""
    old, new = consistent(old), consistent(new)
    gone = removed(old, new)
    left = {p: m for p, m in old.items() if not any(p == g or p.startswith(g + "/") for g in gone)}
    sent = {e.path: e.sha256 for e in delta(tree(old).manifest, tree(new)).send}
    assert not set(left) & set(sent)
    assert not any(s.startswith(kept + "/") or kept.startswith(s + "/") for s in sent for kept in left)
    assert left | sent == new
    assert len(gone) == len(set(gone))
