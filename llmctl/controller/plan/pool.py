"""What only a look at several hosts shows: one machine twice, one workdir shared, unequal links. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from llmctl.controller.config.types import Host
from llmctl.controller.plan.parity import differences
from llmctl.controller.plan.verdicts import Level, Verdict
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.probe.machine import Interface

NETWORK_KINDS = frozenset(
    {"nfs", "nfs4", "ceph", "lustre", "gpfs", "beegfs", "cifs", "glusterfs", "fuse.sshfs"}
)


def pool_verdicts(
    hosts: Sequence[Host], facts: Mapping[str, HostFacts], keys: Mapping[str, str] | None = None
) -> list[Verdict]:
    """Findings from comparing hosts; each is told of the later or odd one.

    Args:
        keys: fingerprint of the host key that each host showed; local hosts have none.
    """
    known = [host for host in hosts if host.name in facts]
    return [
        *_shared_workdirs(known, facts),
        *_same_machine(known, facts, keys or {}),
        *_unequal_mtu(known, facts),
        *_unlike(known, facts),
        *_unequal_gpus(known, facts),
    ]


def pool_problems(
    hosts: Sequence[Host], facts: Mapping[str, HostFacts], keys: Mapping[str, str] | None = None
) -> list[Verdict]:
    """What keeps these hosts from running one job together, parity apart."""
    return [verdict for verdict in pool_verdicts(hosts, facts, keys) if verdict.level is Level.UNFIT]


def _shared_workdirs(hosts: Sequence[Host], facts: Mapping[str, HostFacts]) -> Iterator[Verdict]:
    """Run directories go by the run's id only: on a shared home two hosts would overwrite each other."""
    for first, second in _twins(hosts, lambda host: _workdir_key(facts[host.name])):
        yield Verdict(
            host=second.name,
            about="workdir",
            message=f"{facts[second.name].workdir} is the same folder as on {first.name}",
            hint="give each host its own `workdir:` in hosts.yaml, on a local disk",
        )


def _workdir_key(facts: HostFacts) -> Hashable | None:
    disk = facts.more.disk(facts.workdir)
    if facts.more.workdir_id is None or disk is None:
        return None
    inode = facts.more.workdir_id.partition(":")[2]
    if disk.kind in NETWORK_KINDS or ":/" in disk.source:
        return ("network", disk.source, inode)
    return (facts.more.boot_id, facts.more.workdir_id) if facts.more.boot_id else None


def _same_machine(
    hosts: Sequence[Host], facts: Mapping[str, HostFacts], keys: Mapping[str, str]
) -> Iterator[Verdict]:
    """One sshd under two names is one machine: its cores and GPUs would be counted twice."""
    remote = [host for host in hosts if not host.is_local]
    for first, second in _twins(remote, lambda host: _sshd(host, facts, keys)):
        yield Verdict(
            host=second.name,
            about="identity",
            level=Level.WARN if facts[first.name].workdir != facts[second.name].workdir else Level.UNFIT,
            message=f"is the same machine as {first.name} (host key {keys[second.name]})",
            hint="keep one of the two in hosts.yaml and raise its `slots`",
        )
    for first, second in _twins(remote, lambda host: _clone(host, facts)):
        if facts[first.name].more.boot_id != facts[second.name].more.boot_id:
            yield Verdict(
                host=second.name,
                about="identity",
                level=Level.WARN,
                message=f"has the machine-id of {first.name}: an image was cloned with it",
                hint=f"on {second.name}: rm /etc/machine-id && systemd-machine-id-setup, then reboot",
            )


def _sshd(host: Host, facts: Mapping[str, HostFacts], keys: Mapping[str, str]) -> Hashable | None:
    boot = facts[host.name].more.boot_id
    return (keys[host.name], boot) if host.name in keys and boot else None


def _clone(host: Host, facts: Mapping[str, HostFacts]) -> Hashable | None:
    """Containers share the id of their image: that is no clone."""
    more = facts[host.name].more
    return more.machine_id if more.container is None else None


def _unequal_mtu(hosts: Sequence[Host], facts: Mapping[str, HostFacts]) -> Iterator[Verdict]:
    """A big packet that one side can't take is dropped without a word: the job hangs at its first step."""
    links = {host.name: link for host in hosts if (link := main_link(host, facts[host.name])) is not None}
    sizes = {name: link.mtu for name, link in links.items() if link.mtu}
    if len(set(sizes.values())) < 2:
        return
    usual = max(sizes.values(), key=lambda mtu: (list(sizes.values()).count(mtu), mtu or 0))
    for name, mtu in sizes.items():
        if mtu != usual:
            yield Verdict(
                host=name,
                about="mtu",
                level=Level.WARN,
                message=f"{links[name].name} has MTU {mtu}, the others have {usual}",
                hint=f"on {name}: ip link set {links[name].name} mtu {usual}   (the switch must allow it)",
            )


def main_link(host: Host, facts: HostFacts) -> Interface | None:
    """The interface that the job would use: named in hosts.yaml, or the one by which we reach the host."""
    links = facts.more.interfaces
    if host.interface:
        return next((link for link in links if link.name == host.interface), None)
    wanted = host.internal_addr or facts.reached_by
    for link in links:
        if wanted and any(address.partition("/")[0] == wanted for address in link.addresses):
            return link
    return None


def _unlike(hosts: Sequence[Host], facts: Mapping[str, HostFacts]) -> Iterator[Verdict]:
    for difference in differences({host.name: facts[host.name] for host in hosts}):
        yield Verdict(
            host=next(iter(difference.odd)),
            about=difference.what,
            level=Level.WARN,
            message=difference.message,
            hint=f"make them alike; train refuses unless --allow-mismatch {difference.what}",
        )


def _unequal_gpus(hosts: Sequence[Host], facts: Mapping[str, HostFacts]) -> Iterator[Verdict]:
    models = {host.name: facts[host.name].gpus[0].model for host in hosts if facts[host.name].gpus}
    if len(set(models.values())) > 1:
        names = ", ".join(f"{name} {model}" for name, model in list(models.items())[:6])
        yield Verdict(
            host=list(models)[-1],
            about="gpu",
            level=Level.WARN,
            message=f"GPUs differ: {names}; the slowest sets the pace",
            hint="put unlike hosts into pools of their own",
        )


def _twins(hosts: Sequence[Host], key: Callable[[Host], Hashable | None]) -> Iterator[tuple[Host, Host]]:
    """(first, later) for every host whose key an earlier one has."""
    seen: dict[Hashable, Host] = {}
    for host in hosts:
        value = key(host)
        if value is None:
            continue
        if value in seen:
            yield seen[value], host
        else:
            seen[value] = host
