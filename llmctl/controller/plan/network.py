"""Which address is the master's, and which interface each host uses to reach it. Pure.

Static rendezvous needs an address that peers can reach and an explicit interface per host: a host whose
own name is 127.0.1.1 (Debian's default) otherwise hangs without a message.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from llmctl.controller.config.types import Host
from llmctl.controller.probe.facts import Address, HostFacts
from llmctl.errors import PreflightError

LOOPBACK = "127.0.0.1"


def master_address(hosts: Sequence[Host], facts: Mapping[str, HostFacts]) -> str:
    """The IPv4 address of the first host as its peers reach it.

    Order: `internal_addr`; loopback where every host is this machine; the address that SSH used, if
    one of the host's interfaces has it (else it is a NAT's or a jump host's); its first other address.

    Raises:
        PreflightError: the host has no address that a peer could use.
    """
    first = hosts[0]
    if first.internal_addr:
        return first.internal_addr
    if all(host.is_local for host in hosts):
        return LOOPBACK
    own = _addresses(facts[first.name])
    reached = facts[first.name].reached_by
    if any(address.ip == reached for address in own):
        return str(reached)
    for address in own:
        if not ipaddress.ip_address(address.ip).is_loopback:
            return address.ip
    raise PreflightError(
        "no network address that other hosts could reach",
        host=first.name,
        stage="plan",
        hint=f"set `internal_addr:` for {first.name} in hosts.yaml",
    )


def interface(host: Host, facts: HostFacts, master: str) -> str | None:
    """The interface of `host` towards `master`: given, holding it, in its network, or by route."""
    if host.interface:
        return host.interface
    target = ipaddress.ip_address(master)
    own = _addresses(facts)
    for address in own:
        if address.ip == master:
            return address.interface
    for address in own:
        if target in ipaddress.ip_network(f"{address.ip}/{address.prefix}", strict=False):
            return address.interface
    return facts.python.route_interface if facts.python else None


def own_address(facts: HostFacts, name: str | None) -> str | None:
    """The IPv4 address of the interface `name`."""
    return next((address.ip for address in _addresses(facts) if address.interface == name), None)


def _addresses(facts: HostFacts) -> tuple[Address, ...]:
    return facts.python.addresses if facts.python else ()
