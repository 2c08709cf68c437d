"""What this operator remembers of the hosts of one hosts file: who each one is, and which are drained.

One small JSON file in the state folder, written beside and renamed, mode 0600, a lock around each change.
It can be lost: the next contact pins anew, and a drained host still carries its own marker.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from llmctl.controller.ledger.jsonfile import JsonFile
from llmctl.errors import IntegrityError
from llmctl.wire import codec
from llmctl.wire.records import Drained

FILE = "hosts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Who a host was when it was last seen.

    Attributes:
        key: `type base64` of its host key, as in known_hosts. address: `10.0.0.2:22`.
        machine_id: survives a reboot; boot_id doesn't. Empty where the host has none.
        first_seen, seen: Unix time on this machine.
    """

    key: str
    address: str
    machine_id: str = ""
    boot_id: str = ""
    first_seen: float = 0.0
    seen: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNote:
    """All that is remembered of one host. `entry`: that of hosts.yaml when it was last applied."""

    pin: Optional[Pin] = None
    drained: Optional[Drained] = None
    entry: Optional[dict[str, Any]] = None


class HostBook:
    """Notes about the hosts of one inventory; names mean nothing outside of it.

    Args:
        state_dir: the operator's own folder; made when something is written.
        scope: what tells inventories apart: the absolute path of the hosts file.
        warn: told, once, when the file can't be read or written; nothing else happens then.
    """

    def __init__(self, state_dir: str | Path, scope: str, *, warn: Callable[[str], None]) -> None:
        self.path = Path(state_dir) / FILE
        self._file = JsonFile(self.path)
        self._scope = scope
        self._warn: Callable[[str], None] | None = warn

    def pins(self) -> dict[str, Pin]:
        """Every pinned host of this inventory, by name."""
        return {name: note.pin for name, note in self._notes().items() if note.pin is not None}

    def drained(self) -> dict[str, Drained]:
        """Every host of this inventory that was drained from here, by name."""
        return {name: note.drained for name, note in self._notes().items() if note.drained is not None}

    def names_of(self, key: str) -> list[str]:
        """Hosts of this inventory whose pinned key is `key`."""
        return [name for name, pin in self.pins().items() if pin.key == key]

    def set_pin(self, name: str, pin: Pin | None) -> None:
        """Remember or forget who a host is."""
        self._change(name, lambda note: replace(note, pin=pin))

    def set_drained(self, name: str, mark: Drained | None) -> None:
        """Remember that a host is drained, or that it no longer is."""
        self._change(name, lambda note: replace(note, drained=mark))

    def entries(self) -> dict[str, dict[str, Any] | None]:
        """Every remembered host by name, with its entry where it was applied."""
        return {name: note.entry for name, note in self._notes().items()}

    def set_entry(self, name: str, entry: dict[str, Any]) -> None:
        """Remember the entry of a host that was found fit."""
        self._change(name, lambda note: replace(note, entry=entry))

    def forget(self, name: str) -> None:
        """Remember nothing more of a host."""
        self._change(name, lambda _note: HostNote())

    def rename(self, old: str, new: str) -> None:
        """All that is known of `old` is known of `new`; its entry counts when it is applied anew."""
        note = self._notes().get(old, HostNote())
        self._change(new, lambda _note: replace(note, entry=None))
        self.forget(old)

    def _notes(self) -> dict[str, HostNote]:
        found = {}
        for name, value in self._read().get(self._scope, {}).items():
            with suppress(IntegrityError):  # a note of a newer llmctl that reads otherwise: as if unknown
                found[name] = codec.decode(HostNote, value)
        return found

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            return self._file.read("hosts")
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._tell(f"{self.path} can't be read ({error}); hosts are pinned anew")
            return {}

    def _change(self, name: str, how: Callable[[HostNote], HostNote]) -> None:
        try:
            with self._file.locked():
                document = self._read()
                scope = document.setdefault(self._scope, {})
                note = how(self._notes().get(name, HostNote()))
                if note == HostNote():
                    scope.pop(name, None)
                else:
                    scope[name] = codec.encode(note)
                self._file.write("hosts", document)
        except OSError as error:
            self._tell(f"{self.path} can't be written ({error.strerror}); it is not remembered who {name} is")

    def _tell(self, message: str) -> None:
        warn, self._warn = self._warn, None
        if warn is not None:
            warn(message)
