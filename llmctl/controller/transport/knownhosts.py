"""Who is on the other side: known_hosts read strictly, and the one place that writes it.

An unknown key and a changed key are errors that show fingerprints; only `trust` adds a key.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.controller.transport.sshconfig import SshTarget
from llmctl.errors import ConfigError, HostIdentityError

REVOKED = "@revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedKey:
    """A public host key: its type, its bytes in base64 and the fingerprint that people compare."""

    type: str
    base64: str

    @property
    def fingerprint_sha256(self) -> str:
        """`SHA256:…` as `ssh-keygen -l` shows it."""
        digest = hashlib.sha256(base64.b64decode(self.base64)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def line(self) -> str:
        """`type base64`: what follows the name in known_hosts."""
        return f"{self.type} {self.base64}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownEntry:
    """One line of a known_hosts file."""

    marker: str
    names: str
    key: OfferedKey
    path: Path
    line: int

    def covers(self, name: str) -> bool:
        """The line is about the host `name` (`addr` or `[addr]:port`)."""
        patterns = self.names.split(",")
        if any(_matches(name, p[1:]) for p in patterns if p.startswith("!")):
            return False
        return any(_matches(name, p) for p in patterns if not p.startswith("!"))


def known_entries(target: SshTarget) -> list[KnownEntry]:
    """Every line of the target's known_hosts files that is about it."""
    files = (*target.known_hosts, *target.global_known_hosts)
    return [e for path in files for e in _entries(path) if e.covers(target.known_name)]


def known_types(target: SshTarget) -> list[str]:
    """Key types known for it: to be asked for first, so that another type isn't taken for a change."""
    pinned = [target.pinned_key.split(" ")[0]] if target.pinned_key else []
    return list(dict.fromkeys([*(e.key.type for e in known_entries(target) if not e.marker), *pinned]))


def check(target: SshTarget, offered: OfferedKey) -> None:
    """Return if the offered key is a known one; at an address that is new, the one pinned for this host.

    A host is its key: with a new IP or port, as DHCP and NAT give them, it is still the same.

    Raises:
        HostIdentityError: unknown, changed or revoked; the hint says how to trust it after checking.
    """
    entries = known_entries(target)
    if any(e.key == offered for e in entries if e.marker == REVOKED):
        message = f"{target.address} offered a revoked host key {offered.fingerprint_sha256}"
        raise HostIdentityError(message, hint="do not connect", host=target.name, stage="connect")
    known = [e for e in entries if not e.marker]
    if any(e.key == offered for e in known):
        return
    if known:
        raise _changed(target, known, offered)
    if offered.line == target.pinned_key:
        return
    raise HostIdentityError(
        f"the host key of {target.address} is unknown; offered {offered.type} {offered.fingerprint_sha256}",
        hint=f"compare it with the machine's own, then: llmctl hosts trust {target.name}",
        host=target.name,
        stage="connect",
    )


def _changed(target: SshTarget, known: Sequence[KnownEntry], offered: OfferedKey) -> HostIdentityError:
    same_type = [e for e in known if e.key.type == offered.type]
    old = (same_type or list(known))[0]
    return HostIdentityError(
        f"the host key of {target.address} changed; known {old.key.fingerprint_sha256},"
        f" offered {offered.fingerprint_sha256}",
        hint=f"if the machine was reinstalled: llmctl hosts trust {target.name} --replace;"
        " if not: do not connect",
        host=target.name,
        stage="connect",
    )


def trust(target: SshTarget, key: OfferedKey, *, replace: bool = False) -> Path:
    """Write the key into the target's first known_hosts file (beside, then renamed; mode 0600).

    Args:
        replace: forget what that file said about this host before.

    Returns:
        The file that was written.

    Raises:
        HostIdentityError: another key is known and `replace` is not set.
        ConfigError: the ssh config says that there is no known_hosts file.
    """
    if not target.known_hosts:
        raise ConfigError("UserKnownHostsFile is none: nowhere to write the key", host=target.name)
    path = target.known_hosts[0]
    known = [e for e in known_entries(target) if not e.marker]
    if any(e.key == key for e in known):
        return path
    if known and not replace:
        raise _changed(target, known, key)
    text = path.read_text(errors="surrogateescape") if path.exists() else ""
    lines = list(_without(text.splitlines(), target.known_name) if replace else text.splitlines())
    _write(path, "\n".join([*lines, f"{target.known_name} {key.line}", ""]))
    return path


def _without(lines: Iterable[str], name: str) -> Iterator[str]:
    """The lines with `name` taken out; a pattern that covers more than this host stays."""
    for line in lines:
        fields = line.split()
        if not fields or fields[0].startswith(("#", "@")):
            yield line
            continue
        names = [n for n in fields[0].split(",") if any(c in n for c in "*?!") or not _matches(name, n)]
        if names:
            yield " ".join([",".join(names), *fields[1:]])


def _write(path: Path, text: str) -> None:
    path = path.resolve()  # a link to a file elsewhere stays a link
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)  # mode 0600
    with os.fdopen(handle, "w", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(beside).replace(path)


def _entries(path: Path) -> Iterator[KnownEntry]:
    try:
        lines = path.read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", stage="connect") from None
    for number, line in enumerate(lines, 1):
        entry = _parse(line, path, number)
        if entry:
            yield entry


def _parse(line: str, path: Path, number: int) -> KnownEntry | None:
    """One line; None for a comment or what is no key line (OpenSSH ignores those too)."""
    fields = line.split()
    marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
    if len(fields) < 3 or fields[0].startswith("#"):
        return None
    try:
        base64.b64decode(fields[2], validate=True)
    except binascii.Error:
        return None
    key = OfferedKey(type=fields[1], base64=fields[2])
    return KnownEntry(marker=marker, names=fields[0], key=key, path=path, line=number)


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("|1|"):
        return _matches_hashed(name, pattern)
    if "*" in pattern or "?" in pattern:
        # fnmatch would read the brackets of `[addr]:port` as a set of characters.
        return fnmatch.fnmatchcase(name, pattern.lower().replace("[", "[[]"))
    return name == pattern.lower()


def _matches_hashed(name: str, pattern: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in pattern[3:].split("|"))
    except ValueError:
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
