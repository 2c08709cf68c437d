"""hosts.yaml -> Inventory: finding the file, merging its defaults, choosing hosts for a job."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.controller.config.places import USER_HOSTS, expand, user_config_dir
from llmctl.controller.config.types import LOCAL, Host, Inventory
from llmctl.errors import ConfigError

if TYPE_CHECKING:  # pydantic takes 0.1 s to import; finding the file must not pay for it
    from llmctl.controller.config.models import HostDefaults, HostEntry

ENV_HOSTS = "LLMCTL_HOSTS"
HOSTS_FILE = "hosts.yaml"


def find_inventory(
    explicit: str | None, env: Mapping[str, str], cwd: Path, *, origin: str = "--hosts"
) -> Path:
    """The hosts file to use: `--hosts`, `LLMCTL_HOSTS`, ./hosts.yaml, then the user's own.

    Args:
        origin: where `explicit` was written, for the error (`Settings.origins["hosts"]`).

    Raises:
        ConfigError: a file that was named does not exist, or none was named and none is found.
    """
    for source, named in ((origin, explicit), (ENV_HOSTS, env.get(ENV_HOSTS))):
        if named:
            path = cwd / expand(named)
            if not path.exists() or path.is_dir():  # a pipe is fine: `--hosts <(...)`
                problem = "is a folder" if path.is_dir() else "does not exist"
                raise ConfigError(f"{named} (from {source}) {problem}", hint="llmctl init writes one")
            return path
    usual = (cwd / HOSTS_FILE, user_config_dir(env) / USER_HOSTS)
    for path in usual:
        if path.is_file():
            return path
    raise ConfigError(
        "no hosts file found: neither " + " nor ".join(str(path) for path in usual),
        hint="llmctl init writes one, llmctl hosts import makes one of ~/.ssh/config, --hosts names one",
    )


def load_inventory(path: str | Path) -> Inventory:
    """The inventory in the file at `path`, defaults merged into every host.

    A relative `workdir` of a `local` host is relative to the file; `identity_file` may start with `~`.

    Raises:
        ConfigError: not a valid hosts file, one name with two meanings, or one machine twice in a pool.
    """
    from llmctl.controller.config.checking import check_document
    from llmctl.controller.config.models import HostsFile
    from llmctl.controller.config.yamlfile import read_yaml

    document = read_yaml(path)
    parsed = check_document(HostsFile, document, "the inventory")
    base = Path(path).absolute().parent
    pools: dict[str, tuple[Host, ...]] = {}
    seen: dict[str, Host] = {}
    for pool, section in parsed.pools.items():
        hosts: list[Host] = []
        for index, entry in enumerate(section.hosts):
            where = document.where(("pools", pool, "hosts", index))
            host = _merge(entry, parsed.defaults, base, where)
            _refuse_clash(host, hosts, seen.setdefault(host.name, host), pool, where)
            hosts.append(host)
        pools[pool] = tuple(hosts)
    return Inventory(path=str(path), pools=pools)


def select_hosts(
    inventory: Inventory,
    *,
    pool: str | None = None,
    nodes: int | None = None,
    limit: Sequence[str] = (),
    skip_drained: bool = False,
) -> tuple[Host, ...]:
    """The first `nodes` hosts of a pool that `limit` lets through, in rank order.

    Args:
        limit: globs of names (`gpu-*`), of labels (`gpu=h*`), or, with `!`, of what to leave out.
        skip_drained: leave out hosts that are drained: they get no new run.

    Raises:
        ConfigError: no such pool, a glob that matches nothing, or fewer hosts than `nodes`.
    """
    name, hosts = _pool(inventory, pool)
    if limit:
        hosts = _matching(hosts, limit, name)
    if skip_drained:
        hosts = _not_drained(inventory, hosts, name)
    if nodes is None:
        return hosts
    if nodes > len(hosts):
        have = ", ".join(host.name for host in hosts)
        matching = " that match --limit" if limit else ""
        matching += " and are not drained" if skip_drained and inventory.drained else ""
        raise ConfigError(
            f"{nodes} nodes asked, but pool `{name}` has {len(hosts)} hosts{matching}: {have}",
            hint=f"set `nodes: {len(hosts)}`, or add hosts to {inventory.path}",
        )
    return hosts[:nodes]


def _pool(inventory: Inventory, name: str | None) -> tuple[str, tuple[Host, ...]]:
    known = ", ".join(inventory.pools)
    if name is None:
        if len(inventory.pools) > 1:
            raise ConfigError(
                f"{inventory.path} has several pools: {known}",
                hint="name one: --pool, or `pool:` in the job",
            )
        name = next(iter(inventory.pools))
    if name not in inventory.pools:
        from llmctl.controller.config.checking import did_you_mean

        near = did_you_mean(name, list(inventory.pools))
        hint = None if near.startswith("; known") else f"pools there: {known}"
        raise ConfigError(f"no pool `{name}` in {inventory.path}{near}", hint=hint)
    return name, inventory.pools[name]


def _matching(hosts: tuple[Host, ...], limit: Sequence[str], pool: str) -> tuple[Host, ...]:
    for glob in limit:
        if not any(_fits(host, glob.removeprefix("!")) for host in hosts):
            have = ", ".join(host.name for host in hosts)
            raise ConfigError(f"--limit {glob} matches no host of pool `{pool}`", hint=f"hosts there: {have}")
    wanted = [glob for glob in limit if not glob.startswith("!")]
    unwanted = [glob[1:] for glob in limit if glob.startswith("!")]
    found = [host for host in hosts if not wanted or any(_fits(host, glob) for glob in wanted)]
    found = [host for host in found if not any(_fits(host, glob) for glob in unwanted)]
    if not found:
        raise ConfigError(f"--limit {' '.join(limit)} leaves no host of pool `{pool}`")
    return tuple(found)


def _fits(host: Host, glob: str) -> bool:
    """`gpu-*` is about the name, `gpu=h*` about a label."""
    label, sign, value = glob.partition("=")
    if not sign:
        return fnmatch.fnmatchcase(host.name, glob)
    return any(label == name and fnmatch.fnmatchcase(text, value) for name, text in host.labels)


def _not_drained(inventory: Inventory, hosts: tuple[Host, ...], pool: str) -> tuple[Host, ...]:
    left = tuple(host for host in hosts if host.name not in inventory.drained)
    if hosts and not left:
        raise ConfigError(
            f"every host asked for in pool `{pool}` is drained: " + ", ".join(host.name for host in hosts),
            hint=f"llmctl hosts undrain {hosts[0].name}",
        )
    return left


def _merge(entry: HostEntry, defaults: HostDefaults, base: Path, where: str) -> Host:
    values = {**defaults.model_dump(), **entry.model_dump(exclude_none=True)}
    values["labels"] = tuple(sorted({**defaults.labels, **entry.labels}.items()))
    host = Host(**values)
    if host.workdir.startswith(("/", "~/")):
        return host
    if not host.is_local:
        raise ConfigError(
            f"{where}: `workdir` of {host.name} must start with `/` or `~/`, found {host.workdir!r}"
        )
    return replace(host, workdir=str(base / host.workdir))


def _refuse_clash(host: Host, others: list[Host], known: Host, pool: str, where: str) -> None:
    """One name, one machine: status, logs and checkpoints are kept by name; run directories by machine."""
    if Counter(other.name for other in others)[host.name]:
        raise ConfigError(f"{where}: host `{host.name}` is twice in pool `{pool}`")
    if known != host:
        raise ConfigError(f"{where}: host `{host.name}` has other settings here than in an earlier pool")
    for other in others:
        if _machine(other) == _machine(host):
            place = "this machine" if host.addr == LOCAL else host.addr
            raise ConfigError(
                f"{where}: `{other.name}` and `{host.name}` are the same machine ({place}) and workdir",
                hint="give each its own `workdir`, or keep one and raise its `slots`",
            )


def _machine(host: Host) -> tuple[str, int | None, str | None, str | None, str]:
    return (host.addr, host.port, host.user, host.proxy_jump, host.workdir)
