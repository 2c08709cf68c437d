"""What was measured between hosts, by who they are: names and addresses may change, the link stays the same.

Like the host book it can be lost: the next `hosts map` measures again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmctl.controller.ledger.jsonfile import JsonFile

FILE = "network.json"
KEPT_S = 90 * 86400.0
"""Older links are dropped when something is written."""


class NetBook:
    """Links as plain JSON documents with a key `at` (Unix time), by the identities of their two hosts.

    Args:
        warn: told when the file can't be read or written; nothing else happens then.
    """

    def __init__(self, state_dir: str | Path, *, warn: Callable[[str], None]) -> None:
        self._file = JsonFile(Path(state_dir) / FILE)
        self._warn = warn

    def links(self) -> dict[frozenset[str], dict[str, Any]]:
        """Everything that is remembered."""
        return {frozenset(key.split(" ")): value for key, value in self._read().items()}

    def remember(self, links: Mapping[frozenset[str], dict[str, Any]], *, now: float) -> None:
        """Add these; the same pair's older ones go."""
        try:
            with self._file.locked():
                kept = {key: value for key, value in self._read().items() if value["at"] > now - KEPT_S}
                kept |= {" ".join(sorted(pair)): value for pair, value in links.items()}
                self._file.write("links", kept)
        except OSError as error:
            self._warn(f"{self._file.path} can't be written ({error.strerror}); the map is not remembered")

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            found = self._file.read("links")
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._warn(f"{self._file.path} can't be read ({error}); the network is measured anew")
            return {}
        return {key: value for key, value in found.items() if isinstance(value, dict) and "at" in value}
