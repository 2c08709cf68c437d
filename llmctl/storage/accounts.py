"""Named stores in the user's own `stores.yaml`: where they are and how to log in.

    ceph:                      # then ceph://bucket/folder is a URL
      type: s3
      endpoint: https://rgw.example:7480
      key: AKIA...
      secret: ...
      ca: ~/ceph-ca.pem

An entry named like a kind (`s3`, `hdfs`, `webhdfs`) holds for all URLs of that kind. The file is the user's
own: what others may read is refused, and no value of it is ever shown.

The ranks of a job need not have such a file: the entries that its URIs name travel with its secrets and come
in one environment variable, where they win over the host's own file.
"""

from __future__ import annotations

import difflib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError
from llmctl.storage.faults import explained
from llmctl.wire.environment import STORES

FILE = "stores.yaml"

KEYS: dict[str, tuple[str, ...]] = {
    "s3": ("endpoint", "key", "secret", "token", "profile", "region", "ca"),
    "hdfs": ("host", "conf_dir", "principal", "keytab", "ccache"),
    "webhdfs": ("host", "https", "user", "password", "token", "kerberos", "ca"),
}
"""What an entry of each type may hold, beside `type`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One entry.

    Attributes:
        kind: a key of KEYS.
        values: what it holds; never printed.
    """

    kind: str
    values: Mapping[str, str] = field(default_factory=dict, repr=False)


def accounts_file(env: Mapping[str, str] | None = None) -> Path:
    """`$XDG_CONFIG_HOME/llmctl/stores.yaml`, else `~/.config/llmctl/stores.yaml`."""
    env = os.environ if env is None else env
    chosen = env.get("XDG_CONFIG_HOME", "")
    home = Path(env["HOME"]) if env.get("HOME") else Path.home()
    return (Path(chosen) if chosen.startswith("/") else home / ".config") / "llmctl" / FILE


def account(scheme: str) -> Account:
    """The entry `scheme`, or an empty one of that kind where there is none.

    Raises:
        ConfigError: the file is open to others, or says what means nothing.
    """
    sent = _sent()
    if scheme in sent:
        found = _checked(STORES, scheme, sent[scheme])
        return Account(kind=found.kind, values=_with_files(found.values))
    path = accounts_file()
    entries = _read(path) if path.exists() else {}
    if scheme in entries:
        return _checked(path, scheme, entries[scheme])
    return Account(kind="s3" if scheme == "s3a" else scheme)


def portable(uris: Iterable[str], env: Mapping[str, str] | None = None) -> dict[str, dict[str, str]]:
    """The entries that `uris` name, fit for another machine: a certificate travels as its text. `profile`,
    `conf_dir`, `keytab` and `ccache` stay names of what lies on that machine.

    Raises:
        ConfigError: as `account`, or a certificate can't be read.
    """
    path = accounts_file(env)
    entries = _read(path) if path.exists() else {}
    found = {}
    for scheme in sorted({uri.partition("://")[0] for uri in uris if "://" in uri} & set(entries)):
        checked = _checked(path, scheme, entries[scheme])
        values = {"type": checked.kind, **checked.values}
        if "ca" in values:
            values["ca"] = _certificate(f"{path}: {scheme}: ca", values["ca"])
        found[scheme] = values
    return found


def _certificate(where: str, name: str) -> str:
    try:
        text = Path(name).expanduser().read_text()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {name}: {getattr(error, 'strerror', 'not text')}") from None
    if not text.lstrip().startswith("-----BEGIN"):
        raise ConfigError(f"{where}: {name} holds no certificate", hint="a PEM file: -----BEGIN CERTIFICATE")
    return text.lstrip()


def _sent() -> dict[str, Any]:
    """What came with the job. Its own text is never part of an error."""
    text = os.environ.get(STORES)
    try:
        entries = json.loads(text) if text else {}
    except ValueError:
        raise ConfigError(f"{STORES} is not JSON") from None
    if not isinstance(entries, dict):
        raise ConfigError(f"{STORES} wants named entries")
    return entries


def _with_files(values: Mapping[str, str]) -> Mapping[str, str]:
    """Drivers want a certificate as a file."""
    ca = values.get("ca", "")
    return {**values, "ca": _in_memory(ca)} if ca.startswith("-----BEGIN") else values


@lru_cache(maxsize=16)
def _in_memory(text: str) -> str:
    """A file of this process only, which no disk ever sees; open as long as the process lives."""
    descriptor = os.memfd_create("llmctl-ca")
    with open(descriptor, "wb", closefd=False) as stream:
        stream.write(text.encode())
    return f"/proc/self/fd/{descriptor}"


def _read(path: Path) -> dict[str, Any]:
    with explained("read", str(path)), path.open("rb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
        text = stream.read()
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{path}: holds secrets and others may read it", hint=f"chmod 600 {path}")
    try:
        import yaml
    except ImportError:
        raise ConfigError(f"{path} needs the `PyYAML` package here", hint="pip install PyYAML") from None
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        # Its own text quotes the line, which may hold a secret.
        line = getattr(getattr(error, "problem_mark", None), "line", -1) + 1
        raise ConfigError(f"{path}:{line}: not YAML") from None
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
        raise ConfigError(f"{path}: wants named entries, each with its keys below it")
    return document


def _checked(path: Path | str, name: str, entry: Any) -> Account:
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: {name}: wants keys below it, like `type: s3`")
    kind = str(entry.get("type", name))
    if kind not in KEYS:
        raise ConfigError(f"{path}: {name}: type {kind}: known are {', '.join(KEYS)}")
    values = {key: value for key, value in entry.items() if key != "type"}
    for key, value in values.items():
        if key not in KEYS[kind]:
            near = difflib.get_close_matches(str(key), KEYS[kind], n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(KEYS[kind])}"
            raise ConfigError(f"{path}: {name}: unknown key `{key}` for type {kind}", hint=hint)
        if isinstance(value, (dict, list)) or value is None:
            raise ConfigError(f"{path}: {name}: {key}: wants one value")
    if name not in KEYS and kind != "s3" and "host" not in values:
        raise ConfigError(f"{path}: {name}: wants `host: NAME:PORT`")
    return Account(kind=kind, values={key: _text(value) for key, value in values.items()})


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
