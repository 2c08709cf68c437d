"""What the benches share: a lab, timing by turns, and a table of medians and ratios."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmctl.controller.config.types import Host
from llmctl.controller.transport.base import Transport
from llmctl.controller.transport.pool import Connections
from tests.lab.hosts import Lab

Way = Callable[[], None]
SSH_GCM = ["-o", "Ciphers=aes128-gcm@openssh.com", "-o", "Compression=no"]


@contextmanager
def lab_and_transport() -> Iterator[tuple[Lab, Transport]]:
    """One host, and our connection to it."""
    with Lab.up(1) as lab, lab.inside():
        os.environ["LLMCTL_SSH_CONFIG"] = str(lab.ssh_config)
        with Connections([Host(name="node0", addr="node0")]) as connections:
            yield lab, connections.get("node0")


def by_turns(ways: dict[str, tuple[Way, Way]], rounds: int) -> dict[str, float]:
    """Median seconds per way; each is (prepare, timed). The ways take turns, so a slow minute hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (prepare, timed) in ways.items():
            prepare()
            started = time.perf_counter()
            timed()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(title: str, medians: dict[str, float], base: str, rounds: int) -> None:
    """Markdown, ratios against `base`."""
    print(f"\n| {title} (n={rounds}) | median s | of {base} |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.3f} | {value / medians[base]:.2f} |", flush=True)
