"""Ask one host for its facts, and how this machine reaches it. Light to import: no push, no tree."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmctl.controller.config.requirements import env_python
from llmctl.controller.config.types import Host
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.probe.probe import probe
from llmctl.controller.transport.pool import Connections
from llmctl.controller.transport.sshconfig import resolve

if TYPE_CHECKING:  # pydantic is slow to import
    from llmctl.controller.config.models import JobFile


def facts_of(
    host: Host,
    connections: Connections,
    *,
    agent: str = "",
    target: str = "",
    data: Sequence[str] = (),
    full: bool = False,
    job: JobFile | None = None,
) -> HostFacts:
    """The facts of one host, with the address by which we reach it.

    Args:
        job: its Python is asked: that of the environment which the job names, where it names one.
    """
    python = env_python(job.env, host) if job else None
    asked = replace(host, python=python) if python else host
    facts = probe(connections.get(host.name), asked, agent=agent, target=target, data=data, full=full)
    return replace(facts, reached_by=None if host.is_local else master_target(host) or None)


def master_target(host: Host) -> str:
    """The IPv4 address of a host as this machine resolves it; empty where it can't."""
    if host.internal_addr:
        return host.internal_addr
    name = "127.0.0.1" if host.is_local else resolve(host, config_path=None).hostname
    try:
        return socket.gethostbyname(name)
    except OSError:
        return ""
