"""Ask one host for its facts: one round trip, one deadline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from llmctl.controller.config.types import Host
from llmctl.controller.probe import script
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.probe.machine import Machine, Skew
from llmctl.controller.probe.parsers import host_times, machine, parse, sections
from llmctl.controller.probe.system import ahead
from llmctl.controller.transport.base import Transport
from llmctl.errors import RemoteCommandError

DEADLINE_S = 30.0
LOOK_DEADLINE_S = 10.0


def probe(
    transport: Transport,
    host: Host,
    *,
    agent: str = "",
    target: str = "",
    data: Sequence[str] = (),
    full: bool = False,
) -> HostFacts:
    """The facts of `host`.

    Args:
        agent: hash of the agent archive to look for.
        target: IPv4 address whose route is asked for (the master's); empty: none.
        data: paths of files that the job will read there.
        full: ask also for what no job needs to know, such as every Python of the host.

    Raises:
        RemoteCommandError: the host runs no POSIX shell, or the script broke off.
    """
    argv = script.argv(
        workdir=host.workdir, python=host.python, agent=agent, target=target, data=data, full=full
    )
    sent = time.time()
    done = transport.run(argv, deadline_s=DEADLINE_S, stage="probe")
    arrived = time.time()
    output = "\n" + done.stdout.decode(errors="replace")
    try:
        facts = parse(host.name, output)
    except (ValueError, KeyError, IndexError) as error:
        raise RemoteCommandError(
            f"the probe gave no facts (exit {done.code}): {done.stderr_tail() or error}",
            host=host.name,
            stage="probe",
            hint=f"try: ssh {host.addr} sh -c true",
        ) from error
    times = host_times(output)
    if times is None:
        return facts
    skew, wrong = ahead(sent, arrived, *times)
    return replace(facts, more=replace(facts.more, skew=Skew(ahead=skew, error=wrong)))


def look(transport: Transport, host: Host) -> Machine:
    """Which machine this is: machine-id and boot-id, nothing else; nothing is made or started there.

    Raises:
        RemoteCommandError: the host runs no POSIX shell.
    """
    done = transport.run(script.LOOK, deadline_s=LOOK_DEADLINE_S, stage="identity")
    found = sections("\n" + done.stdout.decode(errors="replace"))
    if "end" not in found:
        raise RemoteCommandError(
            f"it did not say which machine it is (exit {done.code}): {done.stderr_tail(1)}",
            host=host.name,
            stage="identity",
            hint=f"try: ssh {host.addr} sh -c true",
        )
    return machine(found)
