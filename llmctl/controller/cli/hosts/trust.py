"""`llmctl hosts trust`: show a host's key, ask, remember it and the machine behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.options import HostsOption

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.types import Host
    from llmctl.controller.transport.hostkeys import OfferedKey
    from llmctl.errors import LlmctlError

EPILOG = (
    "Examples:\n\n"
    "    llmctl hosts trust --all\n\n"
    "    llmctl hosts trust b --replace      (b was reinstalled)\n\n"
    "    llmctl hosts trust b --fingerprint SHA256:Qk9…      (CI: only this key)"
)


def register(app: typer.Typer) -> None:
    app.command("trust", epilog=EPILOG)(trust)


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
    """Show the key that each host offers, ask, and write it to known_hosts. Keys are never taken silently.

    Then the machine behind the key is remembered (machine-id, boot-id): another one under the same name or
    address is refused from then on, whatever key it shows.
    """
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
        trusted, failed = _trust_all(session, keys, fingerprint=fingerprint, replace=replace)
        errors += [*failed, *_pin(session, trusted)]
    finally:
        session.close()
    if errors:
        raise HostErrors(errors)


def _trust_all(
    session: Session, keys: list[tuple[Host, OfferedKey]], *, fingerprint: str | None, replace: bool
) -> tuple[list[Host], list[LlmctlError]]:
    """Every key is shown before the first question; one host's refusal leaves the others their turn."""
    from llmctl.errors import LlmctlError

    for host, key in keys:
        others = [name for name in session.book.names_of(key.line) if name != host.name]
        known = f"   (the key of {', '.join(others)})" if others else ""
        session.screen.say(f"{host.name} ({host.addr}) offers {key.type} {key.fingerprint_sha256}{known}")
    trusted: list[Host] = []
    failed: list[LlmctlError] = []
    for host, key in keys:
        try:
            if _trust_one(session, host, key, fingerprint=fingerprint, replace=replace):
                trusted.append(host)
        except LlmctlError as error:
            failed.append(error)
    return trusted, failed


def _offered(session: Session, host: Host) -> OfferedKey:
    from llmctl.controller.transport.hostkeys import offered_key

    peers = {other.name: other for other in session.inventory.all_hosts()}
    return offered_key(host, timeout_s=session.settings.connect_timeout_s, peers=peers)


def _trust_one(
    session: Session, host: Host, key: OfferedKey, *, fingerprint: str | None, replace: bool
) -> bool:
    """False where the person said no."""
    from llmctl.controller.transport.hostkeys import trust as write
    from llmctl.errors import HostIdentityError

    if fingerprint is None:
        if not _yes(session, host):
            session.screen.say(f"{host.name} is not trusted")
            return False
    elif fingerprint.removeprefix("SHA256:").rstrip("=") != key.fingerprint_sha256.removeprefix("SHA256:"):
        raise HostIdentityError(
            f"offers {key.fingerprint_sha256}, not {fingerprint}", host=host.name, stage="trust"
        )
    path = write(host, key, replace=replace)
    if replace:
        session.book.set_pin(host.name, None)
    session.screen.say(f"✓ {host.name} is trusted: {key.fingerprint_sha256} in {path}")
    return True


def _pin(session: Session, trusted: list[Host]) -> list[LlmctlError]:
    """Remember which machine answers now; where nobody can log in yet, the first contact does it.

    What is returned: the key is the known one, but another machine than the known one shows it.
    """
    from llmctl.controller.execute.identity import Recogniser
    from llmctl.controller.probe.probe import look
    from llmctl.errors import HostIdentityError, LlmctlError

    recogniser = Recogniser(session.book)
    connections = session.connect(tuple(trusted))

    def one(host: Host) -> None:
        recogniser.check(host, look(connections.get(host.name), host), connections)

    errors = [e for e in connections.each(trusted, one).values() if isinstance(e, LlmctlError)]
    for error in errors:
        if not isinstance(error, HostIdentityError):
            session.screen.warn(f"{error.host}: remembered at the first login; now: {error.message}")
    return [error for error in errors if isinstance(error, HostIdentityError)]


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
