"""Slow hosts over the attempts of a run, for `watch.slow`: what the next attempt is to do about them."""

from __future__ import annotations

from collections.abc import Mapping

from llmctl.controller.collect.pace import slow_hosts, speeds
from llmctl.controller.plan.attempts import EXCLUDE, REBALANCE
from llmctl.wire.records import NodeStatus


class Slowness:
    """What the hosts' steps have shown. A host that is left out is measured no more and stays out, until too
    few others are there; a new supervisor (`resume`) starts without an opinion.

    Args:
        policy: `watch.slow` of the job.
    """

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._slow: dict[str, str] = {}
        self._speeds: dict[str, float] = {}
        self._was_slow = False

    def look(self, statuses: Mapping[str, NodeStatus]) -> list[str]:
        """Take in what the hosts of the attempt say that runs; hosts of too few steps keep what is known.

        Returns: what is new about them, where something will be done about it.
        """
        measured = speeds(statuses)
        found = slow_hosts(statuses)
        news = [f"{self._policy} next time: {why}" for host, why in found.items() if host not in self._slow]
        self._speeds.update(measured)
        self._slow = {host: why for host, why in self._slow.items() if host not in measured} | found
        self._was_slow = self._was_slow or bool(found)
        return news if self._policy in (EXCLUDE, REBALANCE) else []

    @property
    def left_out(self) -> Mapping[str, str]:
        """Hosts that the next attempt is to do without, and the evidence."""
        return self._slow if self._policy == EXCLUDE else {}

    @property
    def speeds(self) -> Mapping[str, float]:
        """By host, what the next attempt's shares go by; none: they are equal. Once a host was slow they stay
        by speed: with its own share it looks like the others."""
        return self._speeds if self._policy == REBALANCE and self._was_slow else {}

    def note(self, hosts: tuple[str, ...]) -> str:
        """What is unusual about the next attempt on these hosts, for people."""
        out = [why for host, why in self.left_out.items() if host not in hosts]
        if out:
            return f"left out: {'; '.join(out)}"
        known = [f"{host} {self.speeds[host]:.3g}" for host in hosts if host in self.speeds]
        return f"batch shared by speed (samples/s of a rank: {', '.join(known)})" if known else ""
