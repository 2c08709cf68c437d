"""What an edit of hosts.yaml is taken for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmctl.controller.config.types import Host
from llmctl.controller.plan.inventorydiff import Edit, changes, entry_of

A = Host(name="a", addr="10.0.0.1", labels=(("gpu", "h100"),))
B = Host(name="b", addr="10.0.0.2")


def known(*hosts: Host) -> dict[str, dict[str, Any] | None]:
    return {host.name: entry_of(host) for host in hosts}


def test_what_is_as_before_is_the_same_and_what_is_not_is_named() -> None:
    """Each key that differs, a label too, with both values; a host that is gone comes last."""
    edited = replace(A, addr="10.0.0.9", slots=4, labels=(("gpu", "h200"), ("rack", "r7")))
    found = changes(known(A, B), [edited])
    assert [(one.name, one.edit) for one in found] == [("a", Edit.CHANGED), ("b", Edit.GONE)]
    assert found[0].what == (
        "addr 10.0.0.1 -> 10.0.0.9",
        "slots - -> 4",
        "label gpu h100 -> h200",
        "label rack - -> r7",
    )
    assert [one.edit for one in changes(known(A, B), [A, B])] == [Edit.SAME, Edit.SAME]


def test_another_name_at_the_same_place_is_a_renamed_host() -> None:
    """It is not new and the old one is not gone; at another place it is both."""
    (found,) = changes(known(B), [replace(B, name="c")])
    assert (found.edit, found.was) == (Edit.RENAMED, "b")
    other = changes(known(B), [replace(B, name="c", addr="10.0.0.7")])
    assert [one.edit for one in other] == [Edit.NEW, Edit.GONE]


def test_a_host_that_is_pinned_but_was_never_applied_is_new() -> None:
    """Trust alone says nothing about its fitness, and its pin is kept: it is not taken for another's."""
    found = changes({"a": None, "z": entry_of(replace(A, name="z"))}, [A])
    assert [(one.name, one.edit) for one in found] == [("a", Edit.NEW), ("z", Edit.GONE)]
