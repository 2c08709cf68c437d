"""URIs: what is local, what is secret, what is a path, and how they are taken apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import ConfigError, LlmctlError, NotFoundError, TransferError
from llmctl.storage.faults import explain, reason
from llmctl.storage.uris import checked, is_local, join, local_path, masked, refuse_credentials, split

SAFE = [
    "/a/b",
    "s3://bucket/a",
    "hdfs://user@nn:8020/a@b",
    "http://h:8080/x?a=1",
    "memory://x",
    "a:b@c",
    "~/x",
]


@pytest.mark.parametrize("uri", SAFE)
def test_what_has_no_secret_is_left_alone(uri: str) -> None:
    """Users, ports, `@` in a path and plain queries are no credentials."""
    assert masked(uri) == uri
    refuse_credentials(uri)


@given(
    st.text(alphabet="abcXYZ0123/+=@:-_", min_size=8, max_size=40).filter(lambda text: not text[0].isdigit())
)
def test_no_part_of_a_password_is_shown(secret: str) -> None:
    """Whatever a password is made of, the masked URL and text around it have none of it."""
    assert masked(f"can't open s3://AKIA:{secret}@bucket now") == "can't open s3://AKIA:***@bucket now"
    with pytest.raises(ConfigError):
        refuse_credentials(f"s3://AKIA:{secret}@bucket/x")


def test_local_is_a_path_or_a_file_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain paths, `~` and file:// mean the disk; every other scheme does not."""
    monkeypatch.setenv("HOME", "/home/me")
    assert [is_local(uri) for uri in ("a", "/a", "file:///a", "~/a", "memory://a", "s3://a")] == [
        True
    ] * 4 + [False] * 2
    assert local_path("file:///a/b") == Path("/a/b")
    assert local_path("~/a") == Path("/home/me/a")
    assert local_path("a").is_absolute()


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("/a/b/c.txt", ("/a/b", "c.txt")),
        ("file:///a/c.txt", ("/a", "c.txt")),
        ("s3://bucket/a/c.txt", ("s3://bucket/a", "c.txt")),
        ("memory://c.txt", ("memory://", "c.txt")),
        ("hdfs://nn:8020/c.txt", ("hdfs://nn:8020", "c.txt")),
    ],
)
def test_split_and_join_are_inverse(uri: str, parts: tuple[str, str]) -> None:
    """A URI is its folder and its name, and those joined are the URI again."""
    assert split(uri) == parts
    if "file:" not in uri:
        assert join(*parts) == uri


@given(st.lists(st.text(alphabet="ab.?*# é", min_size=1, max_size=4), min_size=1, max_size=4))
def test_only_plain_paths_below_the_root_pass(parts: list[str]) -> None:
    """A path passes exactly when no part of it is `.` or `..`."""
    path = "/".join(parts)
    if {".", ".."} & set(parts):
        with pytest.raises(ConfigError):
            checked(path)
    else:
        assert checked(path) == path


def test_the_innermost_reason_is_the_one() -> None:
    """A chain of causes is followed to its end, also where it is a circle."""
    inner, outer = OSError(28, "No space left on device"), RuntimeError("wrapped")
    outer.__cause__ = inner
    assert reason(outer) == "No space left on device"
    inner.__cause__ = outer
    assert reason(outer) in {"No space left on device", "wrapped"}
    assert reason(KeyError()) == "KeyError"


def test_errors_of_ours_pass_unchanged() -> None:
    """Only foreign errors are translated, by their type."""
    ours = TransferError("x")
    assert explain(ours, "read", "w") is ours
    assert isinstance(explain(FileNotFoundError(2, "gone"), "read", "w"), NotFoundError)
    other: LlmctlError = explain(ValueError("bad"), "read", "w")
    assert isinstance(other, TransferError)
    assert other.message == "w: can't read: bad"


@pytest.mark.parametrize(
    ("root", "below"),
    [
        ("hdfs:///", "hdfs:///a/b"),
        ("wh://", "wh://a/b"),
        ("wh:///", "wh:///a/b"),
        ("hdfs://nn:8020/", "hdfs://nn:8020/a/b"),
        ("s3://bucket", "s3://bucket/a/b"),
        ("file:///", "file:///a/b"),
        ("/", "/a/b"),
        ("folder/", "folder/a/b"),
    ],
)
def test_what_lies_below_the_root_of_a_store_is_no_local_path(root: str, below: str) -> None:
    """`hdfs:///` and `name://` are places of their own, whatever their slashes."""
    assert join(root, "a/b") == below
    assert is_local(join(root, "a/b")) == is_local(root)
