"""Which checkpoints may go, so that disks don't fill up and the last good one never does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmctl.errors import IntegrityError
from llmctl.storage.checkpoints import STAGE, Checkpoint, Listing, State, findings, remove
from llmctl.storage.files import Store
from llmctl.storage.findings import Finding
from llmctl.wire.manifests import checkpoint_name

Verify = Callable[[Checkpoint], list[Finding]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """The newest `keep` stay, and every checkpoint whose step is a multiple of `keep_every` (0: none)."""

    keep: int = 3
    keep_every: int = 0

    def is_milestone(self, step: int) -> bool:
        return self.keep_every > 0 and step % self.keep_every == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What `plan` decided. `damaged`: those that count for nothing, with what is wrong, newest first."""

    stay: tuple[Checkpoint, ...]
    go: tuple[Checkpoint, ...]
    damaged: tuple[Checkpoint, ...] = ()


def prune(store: Store, retention: Retention, *, newest: int) -> list[int]:
    """After `newest` was committed: remove what retention does not hold, and half-written ones before it.

    Only checkpoints whose marker and sizes are right count; later steps are another training's and stay.
    Returns the removed steps.
    """
    listing = Listing(store)
    kept: set[int] = set()
    for step in reversed([step for step in listing.committed if step <= newest]):
        if len(kept) >= max(1, retention.keep):
            break
        if listing.judge(step).state is State.COMMITTED:
            kept.add(step)
    if not kept:
        return []
    kept |= {step for step in listing.committed if retention.is_milestone(step)}
    removed = [step for step in listing.steps if step < newest and step not in kept]
    for step in removed:
        remove(store, checkpoint_name(step))
    return removed


def plan(found: Sequence[Checkpoint], retention: Retention, *, unfinished_before: float) -> Pruning:
    """What a person's `prune` would do with a survey.

    A damaged checkpoint counts for nothing. One that is newer than every good one stays, because it may be
    all that there is of those steps. An unfinished one goes when nothing of it changed since
    `unfinished_before` (POSIX time): its writer is dead. Where the store tells no times, it stays.
    """
    good = [one for one in found if one.state is State.COMMITTED]
    stay = good[-max(1, retention.keep) :]
    stay = [one for one in good if one in stay or retention.is_milestone(one.step)]
    newest = max((one.step for one in stay), default=-1)
    go = [
        one
        for one in found
        if (one.state is State.COMMITTED and one not in stay)
        or (one.state is State.DAMAGED and one.step < newest)
        or (one.state is State.UNFINISHED and 0 < one.at < unfinished_before)
    ]
    damaged = [one for one in reversed(found) if one.state is State.DAMAGED]
    return Pruning(stay=tuple(stay), go=tuple(go), damaged=tuple(damaged))


def verified_plan(
    store: Store,
    found: Sequence[Checkpoint],
    retention: Retention,
    *,
    unfinished_before: float,
    verify: Verify | None = None,
) -> Pruning:
    """`plan`, with every byte of the newest that stays read first; one that is bad counts as damaged.

    Raises:
        IntegrityError: checkpoints would go, and not one that stays is good.
    """
    found = list(found)
    pruning = plan(found, retention, unfinished_before=unfinished_before)
    if all(one.state is State.UNFINISHED for one in pruning.go):
        return pruning
    while pruning.stay:
        newest = max(pruning.stay, key=lambda one: one.step)
        bad = (verify or _verify_in(store))(newest)
        if not bad:
            return pruning
        at = found.index(newest)
        found[at] = dataclasses.replace(newest, state=State.DAMAGED, problem=bad[0].problem)
        pruning = plan(found, retention, unfinished_before=unfinished_before)
    raise _none_good(store, pruning.damaged[0])


def damaged_plan(store: Store, found: Sequence[Checkpoint], verify: Verify | None = None) -> Pruning:
    """Only what is damaged goes: by marker and sizes, and by what `verify` finds in those that look whole.

    Raises:
        IntegrityError: some would go, and not one that stays is good.
    """
    judged = [_judged(one, verify) for one in found]
    stay = tuple(one for one in judged if one.state is State.COMMITTED)
    go = tuple(one for one in judged if one.state is State.DAMAGED)
    if go and not stay:
        raise _none_good(store, go[-1])
    return Pruning(stay=stay, go=go, damaged=go[::-1])


def remove_unchanged(store: Store, one: Checkpoint) -> bool:
    """Remove a damaged checkpoint; False where it is no longer what was looked at: a run has saved that step
    again since then."""
    listing = Listing(store)
    if one.step not in listing.steps:
        return False
    now = listing.judge(one.step)
    if dataclasses.replace(now, state=one.state, problem=one.problem) != one:
        return False
    remove(store, one.folder)
    return True


def _judged(one: Checkpoint, verify: Verify | None) -> Checkpoint:
    if one.state is not State.COMMITTED or verify is None or not (bad := verify(one)):
        return one
    return dataclasses.replace(one, state=State.DAMAGED, problem=bad[0].problem)


def _none_good(store: Store, one: Checkpoint) -> IntegrityError:
    return IntegrityError(
        f"{store.uri}: not one checkpoint is good, so nothing is removed; {one.problem}",
        hint=f"llmctl ckpt verify {store.uri} --all",
        stage=STAGE,
    )


def _verify_in(store: Store) -> Verify:
    def verify(one: Checkpoint) -> list[Finding]:
        assert one.manifest is not None  # noqa: S101 - what is COMMITTED has one
        return findings(store, one.folder, one.manifest)

    return verify
