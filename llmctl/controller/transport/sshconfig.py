"""hosts.yaml over `~/.ssh/config`: everything that is needed to dial one host.

paramiko's parser knows Host, Match and tokens, but not Include: the included files are spliced in first.
"""

from __future__ import annotations

import fnmatch
import getpass
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import paramiko

from llmctl.controller.config.types import Host
from llmctl.errors import ConfigError

CONFIG_ENV = "LLMCTL_SSH_CONFIG"
_SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_DEFAULT_KNOWN = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_DEFAULT_GLOBAL_KNOWN = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_MAX_DEPTH = 16
_JUMP = re.compile(r"(?:ssh://)?(?:(?P<user>[^@]+)@)?(?P<host>\[[^]]+]|[^:]+)(?::(?P<port>\d+))?/?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class SshTarget:
    """One host as it is dialled.

    Attributes:
        name: what messages call it.
        identity_files: private keys to try, in order; those that don't exist are left out.
        identities_only: the agent offers only keys that `identity_files` name.
        known_hosts: files that a person's trust is written to (the first) and read from.
        host_key_alias: the name to look for in them, instead of the address.
        jumps: hosts to go through, nearest first.
        pinned_key: `type base64` of the key that this very host had under an earlier address.
    """

    name: str
    hostname: str
    port: int
    user: str
    identity_files: tuple[Path, ...]
    identities_only: bool
    use_agent: bool
    certificate_file: Path | None
    known_hosts: tuple[Path, ...]
    global_known_hosts: tuple[Path, ...]
    host_key_alias: str | None
    jumps: tuple[SshTarget, ...] = ()
    pinned_key: str | None = None

    @property
    def address(self) -> str:
        """`10.0.0.2:22`, for messages."""
        return f"{self.hostname}:{self.port}"

    @property
    def known_name(self) -> str:
        """The name under which known_hosts lists it."""
        name = (self.host_key_alias or self.hostname).lower()
        return name if self.port == 22 or self.host_key_alias else f"[{name}]:{self.port}"


def resolve(
    host: Host, *, config_path: Path | None = None, peers: Mapping[str, Host] | None = None
) -> SshTarget:
    """How to reach `host`: its own fields first, then the ssh config, then ssh's defaults.

    Args:
        config_path: the only config file to read; else LLMCTL_SSH_CONFIG, else the user's and the system's.
        peers: inventory entries that a `proxy_jump` may name.

    Raises:
        ConfigError: a config that can't be read or says what llmctl can't do; a jump that never ends.
    """
    return _resolve(host, config_path, peers or {}, 0)


def _resolve(host: Host, config_path: Path | None, peers: Mapping[str, Host], depth: int) -> SshTarget:
    if depth > _MAX_DEPTH:
        raise ConfigError("its proxy jumps never end", host=host.name, stage="connect")
    options = _lookup(host, config_path)
    hostname = options.get("hostname", host.addr)
    user = host.user or options.get("user") or getpass.getuser()
    port = host.port or int(options.get("port", 22))
    tokens = {
        "%h": hostname,
        "%u": getpass.getuser(),
        "%r": user,
        "%p": str(port),
        "%d": str(Path.home()),
        "%%": "%",
    }
    certificate = options.get("certificatefile")
    return SshTarget(
        name=host.name,
        hostname=hostname,
        port=port,
        user=user,
        identity_files=_identity_files(host, options),
        identities_only=options.get("identitiesonly", "no").lower() == "yes",
        use_agent=options.get("identityagent", "").lower() != "none",
        certificate_file=Path(_expand(certificate, tokens)) if certificate else None,
        known_hosts=_paths(options.get("userknownhostsfile"), _DEFAULT_KNOWN, tokens),
        global_known_hosts=_paths(options.get("globalknownhostsfile"), _DEFAULT_GLOBAL_KNOWN, tokens),
        host_key_alias=options.get("hostkeyalias"),
        jumps=_jumps(host, options, config_path, peers, depth),
    )


def _lookup(host: Host, config_path: Path | None) -> paramiko.SSHConfigDict:
    text = "".join(_read(path, host.addr) for path in _config_files(config_path))
    try:
        return paramiko.SSHConfig.from_file(io.StringIO(text)).lookup(host.addr)
    except (paramiko.ssh_exception.ConfigParseError, ValueError) as error:
        raise ConfigError(f"ssh config: {error}", host=host.name, stage="connect") from None
    except ImportError:
        message = "ssh config: `Match exec` is not supported"
        raise ConfigError(
            message, hint="use `Host` or `Match host`", host=host.name, stage="connect"
        ) from None


def _config_files(config_path: Path | None) -> tuple[Path, ...]:
    named = config_path or (Path(os.environ[CONFIG_ENV]) if os.environ.get(CONFIG_ENV) else None)
    if named is None:
        return (Path.home() / ".ssh" / "config", _SYSTEM_CONFIG)
    if not named.is_file():
        raise ConfigError(f"no ssh config at {named}", stage="connect")
    return (named,)


def _read(path: Path, alias: str) -> str:
    if not path.is_file():
        return ""
    base = _SYSTEM_CONFIG.parent if path == _SYSTEM_CONFIG else Path.home() / ".ssh"
    # A block that is open at a file's end must not swallow the next file's first lines.
    return "\n".join((*_spliced(path, base, alias, 0), "Host *", ""))


def _spliced(path: Path, base: Path, alias: str, depth: int) -> Iterator[str]:
    """The file's lines with every Include that applies to `alias` replaced by the files' lines."""
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{path}: Include is nested too deeply")
    block = "Host *"
    for line in path.read_text(errors="surrogateescape").splitlines():
        keyword, _, value = line.strip().replace("=", " ", 1).partition(" ")
        if keyword.lower() in ("host", "match"):
            block = line
        if keyword.lower() != "include":
            yield line
        elif _block_applies(block, alias, path):
            for included in _included(value, base):
                yield from _spliced(included, base, alias, depth + 1)
            yield block  # the included file's last block ends with the file


def _block_applies(block: str, alias: str, path: Path) -> bool:
    """An Include below `Host a*` counts for hosts that match; below `Match` only `all` can be judged here."""
    keyword, _, value = block.strip().replace("=", " ", 1).partition(" ")
    patterns = value.replace('"', "").split()
    if keyword.lower() == "match":
        if patterns != ["all"]:
            raise ConfigError(f"{path}: Include below `{block.strip()}` is not supported", hint="use `Host`")
        return True
    if any(fnmatch.fnmatchcase(alias, p[1:]) for p in patterns if p.startswith("!")):
        return False
    return any(fnmatch.fnmatchcase(alias, p) for p in patterns)


def _included(value: str, base: Path) -> Iterator[Path]:
    for pattern in value.replace('"', "").split():
        absolute = base / Path(pattern).expanduser()
        found = sorted(Path(absolute.anchor).glob(str(absolute.relative_to(absolute.anchor))))
        yield from (path for path in found if path.is_file())


def _identity_files(host: Host, options: paramiko.SSHConfigDict) -> tuple[Path, ...]:
    configured: list[str] = list(options.get("identityfile", []))
    if host.identity_file:
        named = Path(host.identity_file).expanduser()
        if not named.is_file():
            raise ConfigError(f"no identity file at {named}", host=host.name, stage="connect")
        configured.insert(0, str(named))
    if not configured:
        configured = [str(Path.home() / ".ssh" / key) for key in _DEFAULT_KEYS]
    paths = dict.fromkeys(Path(name).expanduser() for name in configured)
    return tuple(path for path in paths if path.is_file())


def _paths(value: str | None, default: tuple[str, ...], tokens: Mapping[str, str]) -> tuple[Path, ...]:
    names = value.replace('"', "").split() if value else default
    return tuple(Path(_expand(name, tokens)) for name in names if name.lower() != "none")


def _expand(name: str, tokens: Mapping[str, str]) -> str:
    return os.path.expanduser(re.sub(r"%.", lambda match: tokens.get(match[0], match[0]), name))  # noqa: PTH111


def _jumps(
    host: Host,
    options: paramiko.SSHConfigDict,
    config_path: Path | None,
    peers: Mapping[str, Host],
    depth: int,
) -> tuple[SshTarget, ...]:
    wanted = host.proxy_jump or options.get("proxyjump")
    if not wanted or wanted.lower() == "none":
        if options.get("proxycommand") and host.proxy_jump is None and not wanted:
            message = "ssh config: ProxyCommand is not supported"
            raise ConfigError(message, hint="use ProxyJump", host=host.name, stage="connect")
        return ()
    hops = [_resolve(_jump_host(hop, peers), config_path, peers, depth + 1) for hop in wanted.split(",")]
    # The nearest hop may itself need jumps; later hops are dialled from the one before.
    return (*hops[0].jumps, *hops)


def _jump_host(text: str, peers: Mapping[str, Host]) -> Host:
    text = text.strip()
    if text in peers:
        return peers[text]
    match = _JUMP.match(text)
    if not match:
        raise ConfigError(f"`{text}` is no jump host", hint="write user@addr:port", stage="connect")
    port = int(match["port"]) if match["port"] else None
    return Host(name=text, addr=match["host"].strip("[]"), user=match["user"], port=port)
