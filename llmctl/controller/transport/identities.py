"""The keys a user can log in with: agent keys and key files, in the order OpenSSH tries them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm

from llmctl.controller.transport.sshconfig import SshTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One key to offer. `label` names it in messages; `key` is None where it can't be used, `why` says so."""

    label: str
    key: paramiko.PKey | None
    why: str = ""


def identities(target: SshTarget, agent: paramiko.Agent | None) -> Iterator[Identity]:
    """The target's key files (signed by the agent where it holds them), then the agent's other keys."""
    held = {key.asbytes(): key for key in (agent.get_keys() if agent else ())}
    for path in target.identity_files:
        yield _from_file(path, held, target.certificate_file)
    if not target.identities_only:
        for blob in list(held):
            key = held[blob]
            yield Identity(label=f"agent {key.fingerprint}", key=key)


def _from_file(path: Path, held: dict[bytes, paramiko.AgentKey], certificate: Path | None) -> Identity:
    public = _public_blob(path)
    if public in held and not certificate:
        return Identity(label=f"{path} (agent)", key=held.pop(public))
    try:
        key = paramiko.PKey.from_path(path)  # a PATH-cert.pub beside it is loaded too
        if certificate:
            key.load_certificate(str(certificate))
    except (paramiko.PasswordRequiredException, TypeError):
        why = "is encrypted and no agent holds it"
        return Identity(label=str(path), key=None, why=why)
    except (OSError, ValueError, paramiko.SSHException, UnsupportedAlgorithm) as error:
        return Identity(label=str(path), key=None, why=f"can't be read: {error}")
    return Identity(label=str(path), key=key)


def _public_blob(path: Path) -> bytes:
    """The public key in PATH.pub: how to find an encrypted key in the agent."""
    try:
        return base64.b64decode(Path(f"{path}.pub").read_text().split()[1])
    except (OSError, IndexError, UnicodeDecodeError, binascii.Error):
        return b""
