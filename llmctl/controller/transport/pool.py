"""One connection per host, made when first used and again when it was lost."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from llmctl.controller.config.types import Host
from llmctl.controller.transport.base import Transport
from llmctl.controller.transport.connect import dial
from llmctl.controller.transport.local import LocalTransport
from llmctl.controller.transport.ssh import SshTransport
from llmctl.controller.transport.sshconfig import SshTarget, resolve
from llmctl.errors import ConfigError, HostErrors, LlmctlError, NotFoundError

T = TypeVar("T")
_MOST_THREADS = 64


class Connections:
    """Connections to some hosts of an inventory. Thread-safe.

    Args:
        hosts: the hosts that `get` knows.
        connect_timeout_s: for name lookup, TCP, handshake and login together.
        config_path: ssh config to read instead of the user's and the system's.
        jump_hosts: further inventory entries that a `proxy_jump` may name.
        pinned: host name -> `type base64` of the key that this host had when it was last seen.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        *,
        connect_timeout_s: float = 10.0,
        config_path: Path | None = None,
        jump_hosts: Sequence[Host] = (),
        pinned: Mapping[str, str] | None = None,
    ) -> None:
        self._hosts = {host.name: host for host in hosts}
        self._peers = {host.name: host for host in (*jump_hosts, *hosts)}
        self._timeout_s = connect_timeout_s
        self._config_path = config_path
        self._pinned = dict(pinned or {})
        self._open: dict[str, SshTransport | LocalTransport] = {}
        self._locks = {name: threading.Lock() for name in self._hosts}

    def get(self, name: str) -> Transport:
        """The connection to one host. Callers of other hosts don't wait for it.

        Raises:
            NotFoundError: no such host here.
            HostUnreachableError, HostIdentityError, ConfigError: it can't be connected to.
        """
        if name not in self._hosts:
            raise NotFoundError(f"no host `{name}`", hint=f"hosts: {', '.join(self._hosts)}")
        with self._locks[name]:
            transport = self._open.get(name)
            if transport is None or not transport.alive:
                if transport is not None:
                    transport.close()
                transport = self._open[name] = self._connect(self._hosts[name])
            return transport

    def identity(self, name: str) -> tuple[str, str, str] | None:
        """(its host key as `type base64`, the key's fingerprint, `addr:port`) of a host; None: local."""
        transport = self.get(name)
        if not isinstance(transport, SshTransport):
            return None
        key = transport.host_key
        return key.line, key.fingerprint_sha256, self._target(self._hosts[name]).address

    def hostname(self, name: str) -> str:
        """Where a host is reached from here: what the ssh config makes of its `addr`."""
        host = self._hosts[name]
        return "127.0.0.1" if host.is_local else self._target(host).hostname

    def each(self, hosts: Iterable[Host], fn: Callable[[Host], T]) -> dict[str, T | LlmctlError]:
        """`fn` for all hosts at once, in threads; a host's LlmctlError is its result, in the hosts' order."""
        wanted = list(hosts)
        if not wanted:
            return {}
        with ThreadPoolExecutor(min(len(wanted), _MOST_THREADS), thread_name_prefix="host") as threads:
            results = list(threads.map(lambda host: _result(fn, host), wanted))
        return {host.name: result for host, result in zip(wanted, results, strict=True)}

    def close(self) -> None:
        """End all connections; what was started on the hosts with its own session goes on."""
        for transport in list(self._open.values()):
            transport.close()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self, host: Host) -> SshTransport | LocalTransport:
        if host.is_local:
            return LocalTransport(host.name)
        target = self._target(host)
        return SshTransport(host.name, dial(target, timeout_s=self._timeout_s))

    def _target(self, host: Host) -> SshTarget:
        target = resolve(host, config_path=self._config_path, peers=self._peers)
        return replace(target, pinned_key=self._pinned.get(host.name))


def _result(fn: Callable[[Host], T], host: Host) -> T | LlmctlError:
    try:
        return fn(host)
    except LlmctlError as error:
        return _named(error, host.name)


def _named(error: LlmctlError, host: str) -> LlmctlError:
    """The error with its host's name, on a copy: hosts may share one, such as that of the scan for a push.

    A ConfigError of stage `push` is about the tree on this machine and keeps no host.
    """
    about_tree = isinstance(error, ConfigError) and error.stage == "push"
    if error.host or about_tree or isinstance(error, HostErrors):
        return error
    mine = copy.copy(error)
    mine.host, mine.__cause__ = host, error.__cause__
    return mine.with_traceback(error.__traceback__)
