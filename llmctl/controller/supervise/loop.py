"""The supervisor's loop: watch an attempt, end what is left of it, decide, start the next.

It acts only on what hosts have said or on what is certain by the clock; what to do is decided elsewhere
(`plan/attempts.py`, `judge.py`). It runs until the run has its verdict.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.config.types import Host
from llmctl.controller.execute.stop import UNHEARD
from llmctl.controller.plan.attempts import AttemptEnd, End, EndedBy, HostSight, Start, Wait, decide
from llmctl.controller.supervise import judge
from llmctl.controller.supervise.charge import Charge
from llmctl.controller.supervise.contacts import Contacts, Sighting, probes_of
from llmctl.controller.supervise.judge import Attempt, Broken
from llmctl.controller.supervise.slowness import Slowness
from llmctl.controller.transport.pool import Connections
from llmctl.errors import CancelledRunError, HostErrors, LlmctlError, ReplacedError
from llmctl.wire import supervision as phases
from llmctl.wire.records import StopRequest
from llmctl.wire.specs import Peer
from llmctl.wire.states import RunState
from llmctl.wire.supervision import AttemptNote, Supervision

LOOK_S = 0.5
END_GRACE_S = 3.0
"""Before SIGKILL, for ranks whose attempt is broken: they can only wait for one another."""

START_TRIES = 5
LAST_WORD_S = 60.0
SILENCE_S = 24 * 3600.0
"""Longer than any night without a network: a run of which no host answers for so long is left to `resume`."""

REPLACED = End(state=RunState.LOST_CONTACT, why="another supervisor acts for this run")


Starter = Callable[[int, tuple[Host, ...], Mapping[str, float]], tuple[Peer, ...]]
"""(number, hosts, speeds to share the batch by) -> the new attempt's peers, once its agents hold their
leases. Raises LlmctlError."""

Owed = Callable[[], Sequence[str]]
"""Hosts that could not be told when a person stopped the run, as far as this machine knows."""


class Supervisor:
    """One run's supervisor. `say` gets a line for each thing that happens."""

    def __init__(
        self,
        charge: Charge,
        connections: Connections,
        archive: AgentArchive,
        start: Starter,
        say: Callable[[str], None],
        owed: Owed = tuple,
    ) -> None:
        self._charge = charge
        self._connections = connections
        self._archive = archive
        self._start = start
        self._say = say
        self._owed = owed
        self._hosts = {host.name: host for host in charge.config.hosts}
        self._addresses = {peer.host: peer.addr for peer in charge.peers}
        self._attempt = Attempt(number=charge.attempt, hosts=charge.hosts, began=time.monotonic())
        self._ended: list[AttemptEnd] = []
        self._slowness = Slowness(charge.policy.slow)
        self._unfit: dict[str, str] = {}
        self._lock = threading.Lock()
        note = AttemptNote(attempt=charge.attempt, hosts=charge.hosts, started_at=time.time())
        known = [one for one in charge.notes if one.attempt != charge.attempt]
        before = next((one for one in charge.notes if one.attempt == charge.attempt), note)
        if not charge.over:
            before = replace(before, state="running", ended_at=None, reason="")
        self._told = Supervision(
            epoch=charge.epoch,
            holder=charge.holder,
            where=socket.gethostname(),
            phase=phases.PAUSING if charge.over else phases.WATCHING,
            detail=phases.CLAIMED if charge.over else "",
            attempt=charge.attempt,
            attempts=(*known, before),
        )

    def run(self) -> End:
        """Until there will be no further attempt."""
        with Contacts(
            self._connections, self._charge.config.hosts, self._archive, self._charge.run_id, self._said
        ) as contacts:
            self._lease(contacts)
            end = self._attempts(contacts)
            self._last_word(contacts, end)
        return end

    def _attempts(self, contacts: Contacts) -> End:
        if self._charge.over:
            self._ended.append(
                AttemptEnd(attempt=self._charge.attempt, by=EndedBy.REGROWTH, reason=phases.CLAIMED)
            )
            end = self._next(contacts)
            if end is not None:
                return end
        while True:
            broken = self._watch(contacts)
            if isinstance(broken, End):
                return broken
            broken = self._first_cause(contacts, broken)
            self._note_end(broken, contacts.seen())
            self._finish(contacts, broken)
            end = self._next(contacts)
            if end is not None:
                return end

    # --- one attempt ---

    def _watch(self, contacts: Contacts) -> Broken | End:
        """Until the attempt is over; an End: what becomes of it is not ours to see any more."""
        back: tuple[float, int | None] | None = None
        while True:
            seen, now = contacts.seen(), time.monotonic()
            if judge.replaced(seen):
                return REPLACED
            if judge.silence_s(seen, now) > SILENCE_S:
                why = f"no host has answered for {SILENCE_S / 3600:g} h; llmctl resume goes on"
                return End(state=RunState.LOST_CONTACT, why=why)
            for news in self._slowness.look(judge.statuses(self._attempt, seen)):
                self._say(news)
            why = judge.stopped(seen)
            if why:
                return Broken(by=EndedBy.STOP, reason=why)
            broken = judge.verdict(self._attempt, seen, now)
            if broken is not None:
                return broken
            self._look_for_lost(contacts, seen, now)
            self._hand_on_stop(seen)
            back = self._look_for_back(seen, now, back)
            if back is not None and self._may_regrow(seen, back):
                return Broken(by=EndedBy.REGROWTH, reason="hosts are back", calm=True)
            time.sleep(LOOK_S)

    def _look_for_lost(self, contacts: Contacts, seen: dict[str, Sighting], now: float) -> None:
        """Have the hosts that answer look for those that do not."""
        silent = judge.silent_hosts(self._attempt, seen, now)
        for name in self._attempt.hosts:
            wanted = [] if name in silent else probes_of(self._hosts, self._addresses, silent)
            contacts.ask_about(name, wanted)
        detail = f"no contact with {', '.join(silent)}; the run there may be fine" if silent else ""
        if detail != self._told.detail:
            self._tell(detail=detail)

    def _hand_on_stop(self, seen: dict[str, Sighting]) -> None:
        """To hosts that answer again: a stop that none of them could hear when it was asked for. A new
        supervisor was called by somebody who wants the run to go on."""
        if judge.replaced(seen):
            return
        due = [self._hosts[name] for name in self._owed() if name in seen and seen[name].reachable]
        self._connections.each(due, lambda host: self._stop(host, UNHEARD))

    def _look_for_back(
        self, seen: dict[str, Sighting], now: float, back: tuple[float, int | None] | None
    ) -> tuple[float, int | None] | None:
        """(since when a host that is left out could take part again, the checkpoint of that time)."""
        known = (*self._attempt.hosts, *self._unwanted())
        left_out = [name for name in self._hosts if name not in known]
        if HostSight.FREE not in judge.sights(left_out, self._attempt, seen, now).values():
            return None
        return back or (now, judge.checkpoint_of(seen))

    def _may_regrow(self, seen: dict[str, Sighting], back: tuple[float, int | None]) -> bool:
        """At a checkpoint boundary: then next to nothing is lost."""
        checkpoint = judge.checkpoint_of(seen)
        return checkpoint is not None and checkpoint != back[1]

    # --- its end ---

    def _finish(self, contacts: Contacts, broken: Broken) -> None:
        """End what still runs of the attempt, where it can be reached; leases are renewed no more."""
        contacts.lease(self._attempt.hosts, None)
        if broken.by in (EndedBy.SUCCESS, EndedBy.STOP):
            return
        self._tell(phase=phases.PAUSING, detail=broken.reason)
        grace = self._charge.config.job.train.grace_s if broken.calm else END_GRACE_S
        self._end_running(contacts, broken.reason, grace)

    def _end_running(self, contacts: Contacts, reason: str, grace_s: float) -> None:
        """Wherever an attempt still runs and can be reached, the one that ended or an older one."""
        seen, now = contacts.seen(), time.monotonic()
        running = [
            host
            for name, host in self._hosts.items()
            if seen[name].reachable and not judge.over(name, self._attempt, seen, now)
        ]
        request = StopRequest(grace_s=grace_s, reason=phases.REASON + reason, epoch=self._charge.epoch)
        self._connections.each(running, lambda host: self._stop(host, request))

    def _stop(self, host: Host, request: StopRequest) -> None:
        client = AgentClient(self._connections.get(host.name), host, self._archive)
        client.stop(self._charge.run_id, request)

    def _first_cause(self, contacts: Contacts, broken: Broken) -> Broken:
        """A host that only lost its peers may have been heard first: the others' last words are waited for,
        which also lets them end by themselves."""
        if broken.by is not EndedBy.FAILURE:
            return broken
        self._tell(phase=phases.PAUSING, detail=broken.reason)
        deadline = time.monotonic() + judge.PEERS_GRACE_S
        while time.monotonic() < deadline:
            told = judge.statuses(self._attempt, contacts.seen())
            if len(told) == len(self._attempt.hosts) and all(one.state.ended for one in told.values()):
                break
            time.sleep(LOOK_S)
        return judge.verdict(self._attempt, contacts.seen(), time.monotonic()) or broken

    def _note_end(self, broken: Broken, seen: dict[str, Sighting]) -> None:
        ended = judge.end_of(self._attempt, broken, seen)
        self._ended.append(ended)
        self._say(
            f"attempt {ended.attempt} {ended.by.value}: {ended.reason or 'all ranks ended with exit 0'}"
        )
        *earlier, last = self._told.attempts
        last = replace(
            last,
            state=ended.by.value,
            ended_at=time.time(),
            step=ended.step,
            checkpoint_step=ended.checkpoint,
            reason=ended.reason,
        )
        self._tell(attempts=(*earlier, last))

    # --- the next one ---

    def _next(self, contacts: Contacts) -> End | None:
        """Form the next attempt; an End where there is none."""
        since, tries, said = time.monotonic(), 0, ""
        while True:
            seen, now = contacts.seen(), time.monotonic()
            end = self._ended_by_others(seen)
            if end is not None:
                return end
            sights = judge.sights(list(self._hosts), self._attempt, seen, now)
            decision = decide(self._charge.policy, self._ended, sights, now - since, self._unwanted())
            if isinstance(decision, End):
                return decision
            said = self._announce(decision, said)
            self._end_running(contacts, self._ended[-1].reason, END_GRACE_S)
            self._hand_on_stop(seen)
            if isinstance(decision, Start) and decision.after_s <= 0:
                error = self._form(contacts, decision.hosts)
                if error is None:
                    return None
                if not self._leave_out(judge.unfit(error), decision.hosts):
                    tries += 1
                    end = _given_up(error, tries)
                if end is not None:
                    return end
            time.sleep(LOOK_S)

    def _ended_by_others(self, seen: dict[str, Sighting]) -> End | None:
        if judge.replaced(seen):
            return REPLACED
        why = judge.stopped(seen)
        if why and self._ended[-1].by is not EndedBy.SUCCESS:
            return End(state=RunState.CANCELLED, why=why)
        return None

    def _unwanted(self) -> set[str]:
        """Hosts that take part no more while enough others do; a `resume` tries them all again."""
        return {*self._slowness.left_out, *self._unfit}

    def _leave_out(self, unfit: Mapping[str, str], hosts: Sequence[str]) -> bool:
        """Whether the run can go on without these, and from now on does."""
        if not unfit or len(set(hosts) - set(unfit)) < self._charge.policy.min_nodes:
            return False
        self._unfit.update(unfit)
        return True

    def _unusual(self, hosts: tuple[str, ...]) -> str:
        """What people should know of an attempt on these hosts."""
        unfit = [why for name, why in self._unfit.items() if name not in hosts]
        return "; ".join(filter(None, (*unfit, self._slowness.note(hosts))))

    def _announce(self, decision: Start | Wait, said: str) -> str:
        if isinstance(decision, Wait):
            detail, phase = f"waiting {decision.why}", phases.WAITING
        else:
            detail, phase = f"next attempt on {', '.join(decision.hosts)}", phases.PAUSING
            unusual = self._unusual(decision.hosts)
            detail += f"; {unusual}" if unusual else ""
        if detail != said:
            self._say(detail)
            self._tell(phase=phase, detail=f"{self._ended[-1].reason}; {detail}")
        return detail

    def _form(self, contacts: Contacts, names: Sequence[str]) -> LlmctlError | None:
        """Start the next attempt; why it could not, None: it runs."""
        number = self._attempt.number + 1
        hosts = tuple(self._hosts[name] for name in names)
        note = AttemptNote(
            attempt=number,
            hosts=tuple(names),
            started_at=time.time(),
            note=self._unusual(tuple(names)),
        )
        self._attempt = Attempt(number=number, hosts=tuple(names), began=time.monotonic())
        self._tell(attempt=number, attempts=(*self._told.attempts, note))
        try:
            peers = self._start(number, hosts, self._slowness.speeds)
        except LlmctlError as error:
            self._attempt = replace(self._attempt, began=time.monotonic())
            self._lease(contacts)
            contacts.lease(names, None)
            self._say(f"attempt {number} could not start: {error.line()}")
            *earlier, last = self._told.attempts
            failed = replace(last, state=EndedBy.FAILURE.value, ended_at=time.time(), reason=error.line())
            self._tell(attempts=(*earlier, failed))
            return error
        self._attempt = replace(self._attempt, began=time.monotonic())
        self._addresses |= {peer.host: peer.addr for peer in peers}
        self._lease(contacts)
        self._tell(phase=phases.WATCHING, detail="")
        self._say(f"attempt {number} runs on {', '.join(names)}")
        return None

    def _lease(self, contacts: Contacts) -> None:
        """From an attempt's start its ranks have a lease, where they may have to be given up."""
        if self._charge.policy.elastic:
            contacts.lease(self._attempt.hosts, self._charge.policy.lease_s)

    # --- what the hosts are told ---

    def _said(self) -> Supervision:
        with self._lock:
            return self._told

    def _tell(self, **changes: object) -> None:
        with self._lock:
            self._told = replace(self._told, **changes)  # type: ignore[arg-type]

    def _last_word(self, contacts: Contacts, end: End) -> None:
        """The verdict, and a stop that was not heard, to every host that can be told within a minute."""
        if end.state is RunState.LOST_CONTACT:
            self._say(end.why)
            return
        self._tell(phase=phases.ENDED, verdict=end.state.value, detail=end.why)
        self._say(f"{end.state.value}: {end.why}")
        deadline = time.monotonic() + LAST_WORD_S
        while True:
            left = [error for error in contacts.speak().values() if error and _passing(error)]
            self._hand_on_stop(contacts.seen())
            if not left or time.monotonic() > deadline:
                return
            time.sleep(1.0)


def _given_up(error: LlmctlError, tries: int) -> End | None:
    """What the failure to start an attempt means for the run; None: it is tried again."""
    if any(isinstance(one, CancelledRunError) for one in _each(error)):
        return End(state=RunState.CANCELLED, why=error.message)
    if any(isinstance(one, ReplacedError) for one in _each(error)):
        return REPLACED
    if tries >= START_TRIES or not _passing(error):
        return End(state=RunState.FAILED, why=f"no further attempt could start: {error.line()}")
    return None


def _passing(error: LlmctlError) -> bool:
    """Whether trying again can help: a host did not answer, as against a job that can't be started."""
    return all(isinstance(one, judge.PATIENT) for one in _each(error))


def _each(error: LlmctlError) -> list[LlmctlError]:
    return error.errors if isinstance(error, HostErrors) else [error]
