"""`llmctl hosts trust`: see the key that a host offers, and trust it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmctl.controller.config.types import Host
from llmctl.controller.transport import connect, knownhosts
from llmctl.controller.transport.knownhosts import OfferedKey
from llmctl.controller.transport.sshconfig import resolve

__all__ = ["OfferedKey", "offered_key", "trust"]


def offered_key(
    host: Host,
    *,
    timeout_s: float = 10.0,
    config_path: Path | None = None,
    peers: Mapping[str, Host] | None = None,
) -> OfferedKey:
    """The key that `host` shows to anyone; nobody logs in there (but into the jump hosts before it).

    Raises:
        HostUnreachableError: no SSH server answers.
        HostIdentityError: a jump host is not the known one.
    """
    return connect.offered_key(resolve(host, config_path=config_path, peers=peers), timeout_s=timeout_s)


def trust(host: Host, key: OfferedKey, *, replace: bool = False, config_path: Path | None = None) -> Path:
    """Write `key` for `host` into the user's known_hosts (UserKnownHostsFile is honoured); returns the file.

    Raises:
        HostIdentityError: another key is known and `replace` is not set.
    """
    return knownhosts.trust(resolve(host, config_path=config_path), key, replace=replace)
