"""Ask one host for its facts: one round trip, one deadline."""

from __future__ import annotations

from collections.abc import Sequence

from llmctl.controller.config.types import Host
from llmctl.controller.probe import script
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.probe.parsers import parse
from llmctl.controller.transport.base import Transport
from llmctl.errors import RemoteCommandError

DEADLINE_S = 30.0


def probe(
    transport: Transport, host: Host, *, agent: str = "", target: str = "", data: Sequence[str] = ()
) -> HostFacts:
    """The facts of `host`.

    Args:
        agent: hash of the agent archive to look for.
        target: IPv4 address whose route is asked for (the master's); empty: none.
        data: paths of files that the job will read there.

    Raises:
        RemoteCommandError: the host runs no POSIX shell, or the script broke off.
    """
    argv = script.argv(workdir=host.workdir, python=host.python, agent=agent, target=target, data=data)
    done = transport.run(argv, deadline_s=DEADLINE_S, stage="probe")
    try:
        return parse(host.name, "\n" + done.stdout.decode(errors="replace"))
    except (ValueError, KeyError, IndexError) as error:
        raise RemoteCommandError(
            f"the probe gave no facts (exit {done.code}): {done.stderr_tail() or error}",
            host=host.name,
            stage="probe",
            hint=f"try: ssh {host.addr} sh -c true",
        ) from error
