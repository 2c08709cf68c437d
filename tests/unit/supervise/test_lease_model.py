"""The lease between supervisors and hosts, over a network that loses, delays and reorders messages: never two
attempts live.

A model in virtual time around the real arithmetic (`supervise/lease.py`, `wire.supervision.lease_left`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmctl.controller.supervise.lease import FENCE_MARGIN_S, HostClock, end_here, end_there
from llmctl.wire.supervision import Supervision, lease_left

LEASE_S = 20.0
REACT_S = FENCE_MARGIN_S - 1.0
"""The slowest agent: so long after its lease is over its ranks are dead."""
COMMIT_MARGIN_S = 3.0
HOSTS = ("a", "b", "c")


@dataclass
class Node:
    """A host: a clock of its own, the file supervisor.json, and the ranks of one attempt or none."""

    offset: float
    held: Supervision | None = None
    attempt: int = 0
    since: float = 0.0
    alive: bool = False

    def left(self, now: float) -> float:
        return lease_left(
            self.held,
            attempt=self.attempt,
            boot_id="boot",
            since=self.since,
            contact_s=LEASE_S,
            now=now + self.offset,
        )


@dataclass
class Boss:
    """One supervisor; what it knows may be old, what it assumes must hold."""

    epoch: int
    attempt: int
    on: tuple[str, ...]
    until: dict[str, float] = field(default_factory=dict)
    clocks: dict[str, HostClock] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    watching: bool = True
    dead: bool = False


@dataclass(frozen=True)
class Message:
    boss: Boss
    host: str
    told: Supervision
    attempt: int


class Protocol(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.nodes = {name: Node(offset=100.0 * n) for n, name in enumerate(HOSTS)}
        self.boss = Boss(epoch=1, attempt=0, on=())
        self.old: list[Boss] = []
        self.requests: list[Message] = []
        self.replies: list[tuple[Boss, str, float, int, bool]] = []
        self.newest = 0
        self._begin(self.boss, HOSTS)

    # --- what supervisors do ---

    def _begin(self, boss: Boss, hosts: tuple[str, ...]) -> None:
        boss.attempt, boss.on, boss.over, boss.watching = boss.attempt + 1, hosts, set(), True
        self.newest = max(self.newest, boss.attempt)
        for name in hosts:
            node = self.nodes[name]
            node.attempt, node.since, node.alive = boss.attempt, self.now + node.offset, True
            boss.until[name] = end_here(self.now, LEASE_S)

    @rule(host=st.sampled_from(HOSTS), who=st.integers(0, 3))
    def beat(self, host: str, who: int) -> None:
        """A supervisor, be it a replaced one, sends a beat."""
        boss = ([self.boss, *self.old] * 4)[who]
        if boss.dead:
            return
        told = Supervision(epoch=boss.epoch, holder=str(boss.epoch), attempt=boss.attempt)
        if boss.watching and host in boss.on and host in boss.clocks:
            end = end_there(boss.clocks[host], self.now, LEASE_S)
            told = replace(told, valid_until=end, boot_id="boot")
            boss.until[host] = max(boss.until[host], end_here(self.now, LEASE_S))
        self.requests.append(Message(boss, host, told, boss.attempt))

    @rule(index=st.integers(0, 30), lost=st.booleans())
    def deliver_request(self, index: int, lost: bool) -> None:
        """Any message of those under way, in any order, however late."""
        if not self.requests:
            return
        message = self.requests.pop(index % len(self.requests))
        node = self.nodes[message.host]
        if lost or (node.held and node.held.refuses(message.told.epoch, message.told.holder)):
            message.boss.dead |= not lost  # told that it was replaced
            return
        kept = message.told
        if kept.valid_until is None and node.held and node.held.attempt == kept.attempt:
            kept = replace(kept, valid_until=node.held.valid_until, boot_id=node.held.boot_id)
        node.held = replace(kept, boot_id="boot")
        self.replies.append((message.boss, message.host, self.now + node.offset, node.attempt, node.alive))

    @rule(index=st.integers(0, 30), lost=st.booleans())
    def deliver_reply(self, index: int, lost: bool) -> None:
        if not self.replies:
            return
        boss, host, mono, attempt, alive = self.replies.pop(index % len(self.replies))
        if lost:
            return
        boss.clocks[host] = HostClock(came=self.now, mono=mono, boot_id="boot")
        if attempt == boss.attempt and not alive:
            boss.over.add(host)

    @rule(hosts=st.sets(st.sampled_from(HOSTS), min_size=1), times=st.integers(1, 2))
    def good_beat(self, hosts: set[str], times: int) -> None:
        """As it is most of the time: asked and answered at once; what is under way stays so."""
        for host in sorted(hosts) * times:
            self.beat(host, 0)
            if self.requests and self.requests[-1].boss is self.boss:
                self.deliver_request(len(self.requests) - 1, lost=False)
            if self.replies and self.replies[-1][0] is self.boss:
                self.deliver_reply(len(self.replies) - 1, lost=False)

    @rule()
    def give_up(self) -> None:
        """It takes a host for lost: no lease is renewed any more."""
        self.boss.watching = False

    @rule(mask=st.integers(1, 7))
    def form(self, mask: int) -> None:
        """The next attempt, on hosts it can reach, once the last one has certainly ended everywhere."""
        boss, hosts = self.boss, tuple(h for n, h in enumerate(HOSTS) if mask >> n & 1)
        if boss.watching or not self._certain(boss):
            return
        if any(self.nodes[name].alive for name in hosts):
            return  # its agent refuses a second attempt
        self._begin(boss, hosts)

    def _certain(self, boss: Boss) -> bool:
        return all(self._ended(boss, name) for name in boss.on)

    def _ended(self, boss: Boss, name: str) -> bool:
        return name in boss.over or self.now > boss.until[name]

    @rule()
    def replace_boss(self) -> None:
        """`resume`: every host is told of the new supervisor before it acts; the old one may live on."""
        if len(self.old) >= 3:
            return
        new = Boss(epoch=self.boss.epoch + 1, attempt=self.boss.attempt, on=self.boss.on)
        for name in HOSTS:
            node = self.nodes[name]
            until = node.held.valid_until if node.held and node.held.attempt == new.attempt else None
            node.held = Supervision(
                epoch=new.epoch,
                holder=str(new.epoch),
                attempt=new.attempt,
                valid_until=until,
                boot_id="boot",
            )
            new.until[name] = end_here(self.now, LEASE_S)
        self.old.append(self.boss)
        self.boss = new

    # --- what hosts and time do ---

    @rule(seconds=st.sampled_from((0.5, 2.0, 10.0, 25.5, 32.0)))
    def time_passes(self, seconds: float) -> None:
        """Agents end their ranks within REACT_S of the end of the lease; not sooner than they must."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            for node in self.nodes.values():
                if node.alive and node.left(self.now) <= -REACT_S:
                    node.alive = False
            self.certain_is_true()

    @rule(host=st.sampled_from(HOSTS))
    def ranks_die(self, host: str) -> None:
        self.nodes[host].alive = False

    # --- what must hold ---

    @invariant()
    def certain_is_true(self) -> None:
        """Whatever was lost, late or out of order: what a supervisor takes for dead is dead."""
        for name in self.boss.on:
            if self._ended(self.boss, name):
                node = self.nodes[name]
                assert not (node.alive and node.attempt == self.boss.attempt), f"{name} lives"

    @invariant()
    def at_most_one_attempt_may_write(self) -> None:
        """A rank that may commit is of the newest attempt; one that lives with its lease in force, too."""
        for node in self.nodes.values():
            if node.alive:
                assert node.attempt == self.newest, "an older attempt lives beside a newer one"
            if node.alive and node.left(self.now) >= COMMIT_MARGIN_S:
                assert node.attempt == self.newest

    @precondition(lambda self: len(self.requests) > 20)
    @rule()
    def the_network_forgets(self) -> None:
        self.requests.clear()
        self.replies.clear()

    def teardown(self) -> None:
        """Once faults stop, the next attempt can be formed: nothing is waited for for ever."""
        self.boss.watching = False
        self.time_passes(LEASE_S + 2 * FENCE_MARGIN_S)
        assert self._certain(self.boss)
        assert not any(node.alive for node in self.nodes.values())


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
