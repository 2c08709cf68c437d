"""Who a host is: recognised after a move and a reboot, refused when another machine answers."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from llmctl.controller.execute.identity import recognise, worth_writing
from llmctl.controller.ledger.hostbook import HostBook, Pin
from llmctl.errors import HostIdentityError
from llmctl.wire.records import Drained

KEY = "ssh-ed25519 AAAA"
KNOWN = Pin(key=KEY, address="10.0.0.2:22", machine_id="m1", boot_id="b1", first_seen=1.0, seen=2.0)


def seen(**changes: str) -> Pin:
    values = {"key": KEY, "address": "10.0.0.2:22", "machine_id": "m1", "boot_id": "b1", **changes}
    return Pin(**values, first_seen=9.0, seen=9.0)


def test_the_first_contact_is_remembered_without_a_word() -> None:
    """Nothing is known yet: what answers is pinned."""
    assert recognise("b", None, seen()).pin == seen()
    assert recognise("b", None, seen()).notes == ()


def test_the_same_machine_is_recognised_in_silence() -> None:
    """Nothing changed: no note, and the first sight is kept."""
    found = recognise("b", KNOWN, seen())
    assert found.notes == ()
    assert (found.pin.first_seen, found.pin.seen) == (1.0, 9.0)


def test_another_machine_id_is_refused_with_both_and_the_way_on() -> None:
    """Even under the known host key: a cloned disk has it."""
    with pytest.raises(HostIdentityError) as caught:
        recognise("b", KNOWN, seen(machine_id="m2"))
    assert "m2" in caught.value.message
    assert "m1" in caught.value.message
    assert "llmctl hosts trust b --replace" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"boot_id": "b2"}, "was rebooted since 1970-01-01"),
        ({"address": "10.0.0.9:2222"}, "has moved to 10.0.0.9:2222 (was 10.0.0.2:22"),
        ({"key": "ssh-ed25519 BBBB"}, "has a new host key"),
    ],
)
def test_what_changed_is_told_and_remembered(changes: dict[str, str], words: str) -> None:
    """A reboot, a move and a new key are told once: the new pin has them."""
    found = recognise("b", KNOWN, seen(**changes))
    assert len(found.notes) == 1
    assert found.notes[0].startswith(words)
    assert recognise("b", found.pin, seen(**changes)).notes == ()


def test_a_host_without_a_machine_id_keeps_what_was_known() -> None:
    """A minimal container has none: that is not another machine, and later it may be asked again."""
    assert recognise("b", KNOWN, seen(machine_id="")).pin.machine_id == "m1"


def test_a_pin_is_not_written_for_the_time_alone() -> None:
    """A hundred hosts checked twice a minute are not two hundred writes; but the time does not grow stale."""
    again = recognise("b", KNOWN, seen()).pin
    assert not worth_writing(KNOWN, again)
    later = Pin(**{**{f: getattr(again, f) for f in again.__slots__}, "seen": KNOWN.seen + 3600})
    assert worth_writing(KNOWN, later)
    assert worth_writing(KNOWN, recognise("b", KNOWN, seen(boot_id="b2")).pin)


def book(folder: Path, scope: str = "/hosts.yaml", told: list[str] | None = None) -> HostBook:
    return HostBook(folder, scope, warn=(told if told is not None else []).append)


def test_notes_survive_and_belong_to_one_hosts_file(tmp_path: Path) -> None:
    """`a` of one project is not `a` of another."""
    book(tmp_path).set_pin("a", KNOWN)
    book(tmp_path).set_drained("a", Drained(by="me", at=1.0, reason="fan"))
    assert book(tmp_path).pins() == {"a": KNOWN}
    assert book(tmp_path).drained()["a"].reason == "fan"
    assert book(tmp_path).names_of(KEY) == ["a"]
    assert book(tmp_path, "/other/hosts.yaml").pins() == {}
    book(tmp_path).set_pin("a", None)
    assert list(book(tmp_path).drained()) == ["a"], "forgetting the pin must not undrain"


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    """Addresses and machine-ids are the operator's own."""
    book(tmp_path / "state").set_pin("a", KNOWN)
    assert (tmp_path / "state/hosts.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_damaged_book_costs_one_warning_and_nothing_else(tmp_path: Path) -> None:
    """Lost notes are pinned anew; a command must not fail for them."""
    (tmp_path / "hosts.json").write_text('{"hosts": [')
    told: list[str] = []
    damaged = book(tmp_path, told=told)
    assert damaged.pins() == {}
    assert damaged.drained() == {}
    damaged.set_pin("a", KNOWN)
    assert book(tmp_path).pins() == {"a": KNOWN}
    assert len(told) == 1


def test_a_note_of_a_newer_version_is_kept_by_an_older_one(tmp_path: Path) -> None:
    """What this version can't read about b must not be lost when it writes about a."""
    strange = {"pin": {"key": 7}, "drained": None}
    document = {"schema": 1, "hosts": {"/hosts.yaml": {"b": strange}}}
    (tmp_path / "hosts.json").write_text(json.dumps(document))
    book(tmp_path).set_pin("a", KNOWN)
    assert json.loads((tmp_path / "hosts.json").read_text())["hosts"]["/hosts.yaml"]["b"] == strange


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    """Hosts answer from several threads, and two llmctl may run: every pin is there afterwards."""
    names = [f"n{i}" for i in range(24)]
    threads = [threading.Thread(target=lambda n=n: book(tmp_path).set_pin(n, KNOWN)) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(book(tmp_path).pins()) == sorted(names)
