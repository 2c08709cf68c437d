"""`llmctl hosts list | check | trust | import`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.controller.cli.options import (
    HostsOption,
    LimitOption,
    OutputOption,
    PoolOption,
    checked_output,
)

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.types import Host
    from llmctl.controller.transport.hostkeys import OfferedKey
    from llmctl.errors import LlmctlError

hosts_app = typer.Typer(help="The machines: list, check, trust, import.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(hosts_app, name="hosts")


@hosts_app.command("list", epilog="Example:\n\n    llmctl hosts list -o json")
def list_(hosts: HostsOption = None, output: OutputOption = None) -> None:
    """Show the hosts file, defaults merged; asks no host."""
    from llmctl.controller.cli.session import Session
    from llmctl.controller.ui.hosts import inventory_table
    from llmctl.wire import codec

    session = Session(hosts=hosts, output=checked_output(output))
    inventory = session.inventory
    if session.json:
        pools = {name: [codec.encode(host) for host in pool] for name, pool in inventory.pools.items()}
        session.screen.document("hosts", {"path": inventory.path, "pools": pools})
    else:
        session.screen.out.print(inventory_table(inventory))


@hosts_app.command(
    "check", epilog="Examples:\n\n    llmctl hosts check\n\n    llmctl hosts check --limit 'gpu-*'"
)
def check(
    pool: PoolOption = None,
    limit: LimitOption = None,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Ask every host for its facts and say whether it is fit to train; exit 10 to 12 where one is not."""
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.inventory import select_hosts
    from llmctl.controller.ui.hosts import check_table
    from llmctl.errors import HostErrors, LlmctlError

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        inventory = session.inventory
        chosen = (
            inventory.all_hosts()
            if pool is None and not limit
            else select_hosts(inventory, pool=pool or session.settings.pool, limit=tuple(limit or ()))
        )
        results = _check(session, chosen)
    finally:
        session.close()
    if session.json:
        session.screen.document("hosts-check", {"hosts": _check_document(results)})
    else:
        session.screen.out.print(check_table(results))
    errors = [value for value in results.values() if isinstance(value, LlmctlError)]
    errors += [p for value in results.values() if not isinstance(value, LlmctlError) for p in value.problems]
    if errors:
        raise HostErrors(errors)


def _check(session: Session, chosen: tuple[Host, ...]) -> dict[str, Any]:
    from llmctl.controller.execute.check import check_host

    connections = session.connect(chosen)
    return dict(connections.each(chosen, lambda host: check_host(host, connections)))


def _check_document(results: dict[str, Any]) -> dict[str, Any]:
    from llmctl.errors import LlmctlError
    from llmctl.wire import codec

    return {
        name: {"error": value.message, "stage": value.stage}
        if isinstance(value, LlmctlError)
        else {"facts": codec.encode(value.facts), "problems": [p.message for p in value.problems]}
        for name, value in results.items()
    }


TRUST_EPILOG = (
    "Examples:\n\n"
    "    llmctl hosts trust --all\n\n"
    "    llmctl hosts trust b --replace      (b was reinstalled)\n\n"
    "    llmctl hosts trust b --fingerprint SHA256:Qk9…      (CI: only this key)"
)


@hosts_app.command("trust", epilog=TRUST_EPILOG)
def trust(
    names: Annotated[list[str] | None, typer.Argument(metavar="HOST...", help="Hosts to trust.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every host of the hosts file.")] = False,
    fingerprint: Annotated[
        str | None,
        typer.Option(
            "--fingerprint", metavar="SHA256:…", help="Trust only a key with this fingerprint; don't ask."
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the key that is known.")] = False,
    hosts: HostsOption = None,
) -> None:
    """Show the key that each host offers, ask, and write it to known_hosts. Keys are never taken silently."""
    from llmctl.controller.cli.session import Session
    from llmctl.errors import ConfigError, HostErrors, LlmctlError

    session = Session(hosts=hosts)
    try:
        chosen = _named(session, names, everything)
        if fingerprint and len(chosen) != 1:
            raise ConfigError("--fingerprint fits one host", hint="llmctl hosts trust HOST --fingerprint …")
        connections = session.connect(chosen)
        offered = connections.each(chosen, lambda host: _offered(session, host))
        errors = [value for value in offered.values() if isinstance(value, LlmctlError)]
        keys = [(host, key) for host in chosen if not isinstance(key := offered[host.name], LlmctlError)]
        errors += _trust_all(session, keys, fingerprint=fingerprint, replace=replace)
    finally:
        session.close()
    if errors:
        raise HostErrors(errors)


def _trust_all(
    session: Session, keys: list[tuple[Host, OfferedKey]], *, fingerprint: str | None, replace: bool
) -> list[LlmctlError]:
    """Every key is shown before the first question; one host's refusal leaves the others their turn."""
    from llmctl.errors import LlmctlError

    for host, key in keys:
        session.screen.say(f"{host.name} ({host.addr}) offers {key.type} {key.fingerprint_sha256}")
    failed: list[LlmctlError] = []
    for host, key in keys:
        try:
            _trust_one(session, host, key, fingerprint=fingerprint, replace=replace)
        except LlmctlError as error:
            failed.append(error)
    return failed


def _offered(session: Session, host: Host) -> OfferedKey:
    from llmctl.controller.transport.hostkeys import offered_key

    peers = {other.name: other for other in session.inventory.all_hosts()}
    return offered_key(host, timeout_s=session.settings.connect_timeout_s, peers=peers)


def _trust_one(
    session: Session, host: Host, key: OfferedKey, *, fingerprint: str | None, replace: bool
) -> None:
    from llmctl.controller.transport.hostkeys import trust as write
    from llmctl.errors import HostIdentityError

    if fingerprint is None:
        if not _yes(session, host):
            session.screen.say(f"{host.name} is not trusted")
            return
    elif fingerprint.removeprefix("SHA256:").rstrip("=") != key.fingerprint_sha256.removeprefix("SHA256:"):
        raise HostIdentityError(
            f"offers {key.fingerprint_sha256}, not {fingerprint}", host=host.name, stage="trust"
        )
    path = write(host, key, replace=replace)
    session.screen.say(f"✓ {host.name} is trusted: {key.fingerprint_sha256} in {path}")


def _yes(session: Session, host: Host) -> bool:
    from llmctl.errors import ConfigError

    if not session.interactive:
        raise ConfigError(
            "no terminal to ask on",
            host=host.name,
            stage="trust",
            hint=f"compare the fingerprint, then: llmctl hosts trust {host.name} --fingerprint SHA256:…",
        )
    return typer.confirm(f"trust the key of {host.name}?", err=True)


def _named(session: Session, names: list[str] | None, everything: bool) -> tuple[Host, ...]:
    from llmctl.errors import ConfigError, NotFoundError

    inventory = session.inventory
    remote = tuple(host for host in inventory.all_hosts() if not host.is_local)
    if everything:
        return remote
    if not names:
        raise ConfigError("which host?", hint="llmctl hosts trust HOST..., or --all")
    have = {host.name: host for host in remote}
    for name in names:
        if name not in have:
            raise NotFoundError(
                f"no SSH host `{name}` in {inventory.path}", hint="there are: " + ", ".join(have)
            )
    return tuple(have[name] for name in names)


IMPORT_EPILOG = (
    "Examples:\n\n"
    "    llmctl hosts import hostfile > hosts.yaml          (lines like: hostA slots=8)\n\n"
    "    llmctl hosts import ~/.ssh/config -w hosts.yaml"
)


@hosts_app.command("import", epilog=IMPORT_EPILOG)
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A hostfile, or an ssh config.")],
    write: Annotated[
        Path | None, typer.Option("--write", "-w", metavar="FILE", help="Write there; else to stdout.")
    ] = None,
    pool: Annotated[str, typer.Option("--pool", metavar="NAME", help="Name of the pool.")] = "main",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Make a hosts file of an MPI or DeepSpeed hostfile, or of the hosts in an ssh config."""
    from llmctl.controller.config.imports import import_file, render_hosts
    from llmctl.errors import ConfigError

    text = render_hosts(import_file(source), pool=pool, origin=str(source))
    if write is None:
        sys.stdout.write(text)
        return
    if write.exists() and not force:
        raise ConfigError(f"{write} is already there", hint="--force replaces it")
    beside = write.with_name(f".{write.name}.new")
    beside.write_text(text)
    beside.replace(write)
    typer.echo(f"✓ {write}   next: llmctl hosts trust --all · llmctl hosts check", err=True)
