"""What `hosts check --deep` measured, who is paired with whom, and what it says against a host. Pure."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llmctl.controller.plan.verdicts import Level, Verdict
from llmctl.wire.deep import DeepReply, DeviceSpeed

SLOW_DEVICE = 0.7
"""Of the median of the pool's devices of that model: below it a device is worth a word."""

SLOW_PAIR = 1 / 3
"""Of the median pair; all-reduces of a busy host come later, those of a broken one much later."""

LONG_TRIAL_S = 300.0
LEAST_PAIRS = 2
"""One pair alone is not fast or slow. Of two the faster is the measure; pairing again tells who it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """An all-reduce of two hosts: bytes per second, or why it failed."""

    a: str
    b: str
    rate: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreResult:
    """One host at one place: `use` is `read`, `write` or `trial`; `wanted` bytes of a trial."""

    uri: str
    use: str
    reply: DeepReply
    wanted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deep:
    """What one host did. `error`: why it did nothing at all."""

    devices: tuple[DeviceSpeed, ...] = ()
    stores: tuple[StoreResult, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepResults:
    """All hosts by name, and the pairs in the order in which they were tried."""

    hosts: Mapping[str, Deep]
    pairs: tuple[PairResult, ...] = ()


def first_pairs(names: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Rounds in which every host is in a pair at least once, and in one at a time."""
    pairs = [(names[i], names[i + 1]) for i in range(0, len(names) - 1, 2)]
    rounds = [pairs] if pairs else []
    if len(names) % 2 and len(names) > 1:
        rounds.append([(names[-1], names[0])])
    return rounds


def second_pairs(pairs: Sequence[PairResult]) -> list[list[tuple[str, str]]]:
    """The hosts of bad pairs, each with another host that was in a good one: who fails again is sick.

    Nothing, where no pair was good: then nobody can be told from the others.
    """
    bad = _bad(pairs)
    sound = _names([pair for pair in pairs if pair not in bad])
    suspects = [name for name in _names(bad) if name not in sound]
    rounds: list[list[tuple[str, str]]] = []
    for start in range(0, len(suspects), max(1, len(sound))):
        rounds.append(list(zip(suspects[start : start + len(sound)], sound, strict=False)))
    return [pairs for pairs in rounds if pairs]


def deep_verdicts(results: DeepResults) -> list[Verdict]:
    """Everything that was found, each told of the host that it is about."""
    return [
        *_silent(results),
        *_devices(results),
        *_sick(results.pairs),
        *_stores(results),
    ]


def _silent(results: DeepResults) -> Iterator[Verdict]:
    for name, deep in results.hosts.items():
        if deep.error:
            yield _unfit(name, "deep", deep.error, f"llmctl hosts facts --limit {name}")


def _devices(results: DeepResults) -> Iterator[Verdict]:
    """The slow one among devices of one model, over all hosts; a wrong product wherever it is."""
    every = [(name, device) for name, deep in results.hosts.items() for device in deep.devices]
    for name, device in every:
        if not device.same:
            yield _unfit(
                name,
                "compute",
                f"{device.name} ({device.model}) gives different products of the same matrices",
                f"take {device.name} of {name} out of service: what it computes can't be trusted",
            )
    for model in dict.fromkeys(device.model for _, device in every):
        alike = [(name, device) for name, device in every if device.model == model]
        usual = statistics.median_high(device.flops for _, device in alike)
        for name, device in alike:
            if device.flops < SLOW_DEVICE * usual:
                share = device.flops / usual
                yield Verdict(
                    host=name,
                    about="compute",
                    level=Level.WARN,
                    message=f"{device.name} is slow: {flops(device.flops)}, {share:.0%} of {flops(usual)}, "
                    f"the median of {len(alike)} x {model}; all others would wait for it",
                    hint=_why_slow(name, device),
                )


def _why_slow(name: str, device: DeviceSpeed) -> str:
    if device.name == "cpu":
        return f"other load (llmctl hosts exec --limit {name} -- uptime), a limit on CPU time, or heat"
    index = device.name.split()[-1]
    ask = f"nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER -i {index}"
    return f"llmctl hosts exec --limit {name} -- {ask}; or leave it out: --limit '!{name}'"


def _sick(pairs: Sequence[PairResult]) -> Iterator[Verdict]:
    """Who failed with every partner although the partners are sound; a pair alone is told as a pair."""
    bad = _bad(pairs)
    good = [pair for pair in pairs if pair not in bad]
    sound = _names(good)
    named: set[str] = set()
    for name in _names(bad):
        mine = [pair for pair in bad if name in (pair.a, pair.b)]
        partners = [_other(pair, name) for pair in mine]
        if name not in sound and any(partner in sound for partner in partners):
            named.add(name)
            with_whom = " and ".join(dict.fromkeys(partners))
            text = f"all-reduce with {with_whom} {{}}, which work with others"
            yield _pair_verdict(name, mine, pairs, text)
    for pair in bad:
        if not named & {pair.a, pair.b}:
            rest = "" if {pair.a, pair.b} & set(sound) else "; no third host could tell which of them is sick"
            yield _pair_verdict(pair.b, [pair], pairs, f"all-reduce with {pair.a} {{}}{rest}")


def _pair_verdict(name: str, bad: list[PairResult], pairs: Sequence[PairResult], text: str) -> Verdict:
    failed = [pair for pair in bad if pair.error]
    if failed:
        hint = f"llmctl hosts map: can both connect?; then drain it: llmctl hosts drain {name}"
        return _unfit(name, "collective", text.format("fails") + f": {failed[0].error}", hint)
    rate = max(pair.rate or 0.0 for pair in bad)
    median = statistics.median_high(pair.rate for pair in pairs if pair.rate is not None)
    told = text.format(f"is slow ({rate / 1e6:.0f} MB/s, the median of all pairs is {median / 1e6:.0f})")
    hint = f"llmctl hosts map shows whether the network is slow; else look at the load of {name}"
    return replace(_unfit(name, "collective", told, hint), level=Level.WARN)


def _bad(pairs: Sequence[PairResult]) -> list[PairResult]:
    rates = [pair.rate for pair in pairs if pair.rate is not None]
    least = SLOW_PAIR * statistics.median_high(rates) if len(rates) >= LEAST_PAIRS else 0.0
    return [pair for pair in pairs if pair.rate is None or pair.rate < least]


def _names(pairs: Sequence[PairResult]) -> list[str]:
    return list(dict.fromkeys(itertools.chain.from_iterable((pair.a, pair.b) for pair in pairs)))


def _other(pair: PairResult, name: str) -> str:
    return pair.b if pair.a == name else pair.a


def _stores(results: DeepResults) -> Iterator[Verdict]:
    for name, deep in results.hosts.items():
        for found in deep.stores:
            reply = found.reply
            if reply.error:
                did = {"read": "can't read", "write": "can't write to", "trial": "no trial checkpoint in"}
                message = f"{did.get(found.use, found.use)} {found.uri}: {reply.error}"
                hint = reply.hint or f"llmctl store check {found.uri}, on {name} and here"
                yield _unfit(name, "store", message, hint)
            elif found.use == "trial" and trial_seconds(found) > LONG_TRIAL_S:
                yield Verdict(
                    host=name,
                    about="checkpoint",
                    level=Level.WARN,
                    message=f"a checkpoint of {found.wanted / 1e9:.1f} GB takes {trial_seconds(found):.0f} s"
                    f" in {found.uri} ({reply.bytes / max(1e-6, reply.seconds) / 1e6:.0f} MB/s)",
                    hint="save less often (checkpoint.every), or use a faster store (checkpoint.uri)",
                )


def trial_seconds(found: StoreResult) -> float:
    """How long all of the checkpoint would take, where only a part was written."""
    reply = found.reply
    return reply.seconds * found.wanted / reply.bytes if reply.bytes else 0.0


def _unfit(host: str, about: str, message: str, hint: str) -> Verdict:
    return Verdict(host=host, about=about, message=message, hint=hint)


def flops(value: float) -> str:
    """`612 TFLOP/s`, `85 GFLOP/s`."""
    for unit, size in (("PFLOP/s", 1e15), ("TFLOP/s", 1e12), ("GFLOP/s", 1e9)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e6:.0f} MFLOP/s"
