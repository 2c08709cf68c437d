"""A failure drill as values: what to break and when, what is asserted, and whether it held. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmctl.controller.config.models import JobFile
from llmctl.controller.plan.attempts import policy_of
from llmctl.errors import ConfigError
from llmctl.wire.drill import FREEZE, KILL_HOST, KILL_RANK

KINDS = ("lost-steps", "recovery", "ledger", "loss")

FEWEST_AGAIN = 2
"""Steps that two attempts must both have done for their losses to prove anything: the first one after a
resume shows that the weights are right, only the second that the optimizer's state is."""

TOLERANCE_FP32 = 1e-4
TOLERANCE = 5e-3
"""Of a loss, relative. bf16 and another number of ranks round in another order."""

_TARGET = re.compile(r"(host|rank)=(.+)", re.S)
_BOUND = re.compile(r"([a-z-]+)(?:<=([0-9.e+-]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`host=b`, `host=1` or `rank=3`, as it was typed."""

    kind: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is broken on which host. `ranks`: only these; empty: all of the host."""

    fault: str
    host: str
    ranks: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """`kill agent and ranks on b`."""
        if self.fault == KILL_HOST:
            return f"kill agent and ranks on {self.host}"
        what = "ranks" if not self.ranks else f"rank {', '.join(str(rank) for rank in self.ranks)}"
        return f"{'freeze' if self.fault == FREEZE else 'kill'} {what} on {self.host}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assertion:
    """`kind` of KINDS; `at_most`: steps, seconds, or a relative difference; None: the kind's own."""

    kind: str
    at_most: float | None = None

    @property
    def text(self) -> str:
        return self.kind if self.at_most is None else f"{self.kind}<={self.at_most:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at: `text` says with numbers why it held or not."""

    name: str
    held: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Losses by attempt and step, from the metrics of the run's attempts."""

    losses: Mapping[int, Mapping[int, float]] = field(default_factory=dict)

    def after(self, attempt: int) -> int | None:
        """The first later attempt that has done a step."""
        return min(
            (number for number, steps in self.losses.items() if number > attempt and steps), default=None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """The fault as it came: in which attempt, after which step."""

    attempt: int
    step: int
    hit: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How the run came back.

    Attributes:
        attempt: the one that has passed the step of the fault; None: none did.
        seconds: from the fault to its first step, as seen from here; None where that was not seen.
        why: what kept it from coming back.
    """

    attempt: int | None = None
    seconds: float | None = None
    hosts: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What the audit of the run's samples says."""

    proven: bool
    text: str


def parse_target(text: str, flag: str) -> Target:
    """`host=NAME`, `host=NUMBER` or `rank=NUMBER`. Raises ConfigError."""
    match = _TARGET.fullmatch(text)
    if match is None:
        raise ConfigError(f"{flag} wants host=NAME, host=NUMBER or rank=NUMBER, found {text!r}")
    if match[1] == "rank" and not re.fullmatch("[0-9]{1,6}", match[2]):
        raise ConfigError(f"{flag} rank= wants a number from 0, found {match[2]!r}")
    return Target(kind=match[1], value=match[2])


def parse_asserts(text: str) -> tuple[Assertion, ...]:
    """`lost-steps<=10,ledger,loss`. Raises ConfigError."""
    found = [_assertion(part.strip()) for part in text.split(",") if part.strip()]
    kinds = [one.kind for one in found]
    if not found:
        raise ConfigError(f"--assert is empty; it knows {', '.join(KINDS)}")
    if len(set(kinds)) < len(kinds):
        raise ConfigError(f"--assert names {next(k for k in kinds if kinds.count(k) > 1)} twice")
    return tuple(found)


def _assertion(text: str) -> Assertion:
    match = _BOUND.fullmatch(text)
    if match is None or match[1] not in KINDS:
        hint = "lost-steps<=10, recovery<=60 (seconds), ledger, loss or loss<=1e-3"
        raise ConfigError(f"--assert does not know {text!r}", hint=hint)
    kind, bound = match[1], match[2]
    if bound is None:
        if kind in ("lost-steps", "recovery"):
            raise ConfigError(f"--assert {kind} wants a bound: {kind}<=10")
        return Assertion(kind=kind)
    if kind == "ledger":
        raise ConfigError("--assert ledger has no bound: each sample was used exactly once, or not")
    try:
        value = float(bound)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ConfigError(f"--assert {kind}<= wants a number from 0, found {bound!r}")
    return Assertion(kind=kind, at_most=value)


def find_host(target: Target, hosts: Sequence[str], flag: str) -> str:
    """The name of a host that is meant by name or by its number in rank order. Raises ConfigError."""
    if target.value in hosts:
        return target.value
    if re.fullmatch("[0-9]{1,6}", target.value) and int(target.value) < len(hosts):
        return hosts[int(target.value)]
    told = ", ".join(f"{number} {name}" for number, name in enumerate(hosts))
    raise ConfigError(f"{flag} host={target.value}: no such host in this job", hint=f"it has {told}")


def fault_of(*, freeze: bool, target: Target, flag: str, peers: Sequence[tuple[str, int, int]]) -> Fault:
    """The fault on its host.

    Args:
        peers: (host, first rank, ranks) in rank order.

    Raises:
        ConfigError: there is no such host or rank.
    """
    if target.kind == "host":
        host = find_host(target, [name for name, _, _ in peers], flag)
        return Fault(fault=FREEZE if freeze else KILL_HOST, host=host)
    rank = int(target.value)
    for host, first, count in peers:
        if first <= rank < first + count:
            return Fault(fault=FREEZE if freeze else KILL_RANK, host=host, ranks=(rank,))
    total = sum(count for _, _, count in peers)
    raise ConfigError(f"{flag} rank={rank}: the run has ranks 0-{total - 1}")


def own_name(name: str) -> str:
    """The job's name as that of a drill: no `llmctl … NAME` can mean it by accident."""
    return f"{name[:42].rstrip('-')}-drill"


def own_place(uri: str, token: str) -> str:
    """A folder beside the job's checkpoints, where no other run keeps any; below them where a URI has no
    path that something could stand beside."""
    scheme, is_url, rest = uri.partition("://")
    authority, _, path = rest.partition("/") if is_url else ("", "", uri)
    if path.strip("/"):
        return f"{uri.rstrip('/')}-drill-{token}"
    return f"{scheme}://{authority}/drill-{token}" if is_url else f"/drill-{token}"


def refuse_job(job: JobFile, hosts: Sequence[str], at_step: int) -> None:
    """Raises ConfigError for a job whose drill could show nothing."""
    if job.train.script is not None and not job.script_has_recipe:
        raise ConfigError(
            "a drill goes by the recipe's steps; this job's script tells of none",
            hint="a script that uses `llmctl.worker.prepare` and has `recipe:` in its job can be drilled",
        )
    if at_step >= job.recipe.steps:
        raise ConfigError(
            f"--at-step {at_step}: the run has {job.recipe.steps} steps, and must go on behind the fault",
            hint="a smaller --at-step, or --set recipe.steps=…",
        )
    if not policy_of(job, hosts).supervised:
        raise ConfigError(
            "nothing follows a failed attempt of this job: `restarts.max` is 0",
            hint="--set restarts.max=1 drills it all the same",
        )


def judge(
    asserts: Sequence[Assertion],
    struck: Struck,
    recovery: Recovery,
    lineage: Lineage,
    ledger: Ledger,
    *,
    fp32: bool,
) -> tuple[Check, ...]:
    """Recovery itself, then each assertion in the order given."""
    resumed = lineage.after(struck.attempt)
    checks = [_recovered(recovery, lineage, resumed)]
    for one in asserts:
        if one.kind == "ledger":
            checks.append(Check(name="ledger", held=ledger.proven, text=ledger.text))
        elif one.kind == "recovery":
            checks.append(_in_time(one, recovery))
        elif resumed is None:
            checks.append(Check(name=one.kind, held=False, text="no later attempt has done a step"))
        elif one.kind == "lost-steps":
            checks.append(_lost(one, struck, lineage, resumed))
        else:
            checks.append(_same_loss(one, struck, lineage, resumed, fp32=fp32))
    return tuple(checks)


def _recovered(recovery: Recovery, lineage: Lineage, resumed: int | None) -> Check:
    if recovery.attempt is None:
        return Check(name="recovered", held=False, text=recovery.why or "it did not come back")
    start = "" if resumed is None else f" went on from step {_start(lineage, resumed)}"
    took = "" if recovery.seconds is None else f", first step {recovery.seconds:.0f} s after the fault"
    where = ", ".join(recovery.hosts)
    return Check(name="recovered", held=True, text=f"attempt {recovery.attempt} on {where}{start}{took}")


def _in_time(wanted: Assertion, recovery: Recovery) -> Check:
    if recovery.seconds is None or wanted.at_most is None:
        return Check(name="recovery", held=False, text="no first step was seen after the fault")
    held = recovery.seconds <= wanted.at_most
    text = f"{recovery.seconds:.1f} s to the first new step, wanted at most {wanted.at_most:g}"
    return Check(name="recovery", held=held, text=text)


def _start(lineage: Lineage, attempt: int) -> int:
    """Steps that were done when this attempt began: steps count from 1."""
    return min(lineage.losses[attempt]) - 1


def _last(struck: Struck, lineage: Lineage) -> int:
    """The last step that counted as done before the fault; metrics may know one more than the host hit."""
    return max(struck.step, *lineage.losses.get(struck.attempt, {0: 0.0}))


def _lost(wanted: Assertion, struck: Struck, lineage: Lineage, resumed: int) -> Check:
    last, start = _last(struck, lineage), _start(lineage, resumed)
    lost = max(0, last - start)
    held = wanted.at_most is not None and lost <= wanted.at_most
    text = (
        f"{lost} lost (step {last} was the last, it went on from {start}), wanted at most {wanted.at_most:g}"
    )
    return Check(name="lost-steps", held=held, text=text)


def _same_loss(wanted: Assertion, struck: Struck, lineage: Lineage, resumed: int, *, fp32: bool) -> Check:
    """The steps that were lost are done again: their losses must come out as before."""
    before, again = lineage.losses.get(struck.attempt, {}), lineage.losses[resumed]
    both = sorted(before.keys() & again.keys())
    if len(both) < FEWEST_AGAIN:
        text = (
            f"not shown: {len(both)} steps were done twice, {FEWEST_AGAIN} are needed; "
            "choose --at-step a few steps behind a checkpoint"
        )
        return Check(name="loss", held=False, text=text)
    tolerance = wanted.at_most if wanted.at_most is not None else TOLERANCE_FP32 if fp32 else TOLERANCE
    gaps = {step: _gap(before[step], again[step]) for step in both}
    worst = max(both, key=lambda step: gaps[step])
    text = (
        f"steps {both[0]}-{both[-1]} done twice, largest relative difference {gaps[worst]:.1e} "
        f"(step {worst}), wanted at most {tolerance:g}"
    )
    return Check(name="loss", held=gaps[worst] <= tolerance, text=text)


def _gap(first: float, second: float) -> float:
    """Relative difference; a loss that is no number differs from everything."""
    if not (math.isfinite(first) and math.isfinite(second)):
        return math.inf
    return abs(first - second) / max(abs(first), abs(second), 1e-12)
