"""What a failure drill is about to do, and what came of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.controller.plan.drill import Check, Fault, Recovery, Struck


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillPlan:
    """What is to be done. `hang`: `watch.hang` of the job, where the fault is one."""

    name: str
    hosts: tuple[str, ...]
    fault: str
    at_step: int
    asserts: tuple[str, ...]
    checkpoints: str
    timeout_s: float
    hang: str | None = None


def plan_lines(plan: DrillPlan) -> Iterator[str]:
    """The plan for people."""
    yield f"drill      {plan.name}: a run of its own on {', '.join(plan.hosts)}"
    yield f"saves      {plan.checkpoints}"
    yield f"fault      after step {plan.at_step}: {plan.fault}"
    if plan.hang is not None:
        found = "after 2 minutes or more" if plan.hang == "auto" else f"after {plan.hang}"
        yield f"found      {found} without a step (watch.hang: {plan.hang})"
    yield f"then       back within {plan.timeout_s:g} s and past step {plan.at_step}; then it is stopped"
    yield f"assert     {' · '.join(plan.asserts)}"


def check_lines(run_id: str, checks: Sequence[Check]) -> Iterator[str]:
    """The verdict for people."""
    for check in checks:
        yield f"{'✓' if check.held else '✗'} {check.name:<10} {check.text}"
    failed = [check.name for check in checks if not check.held]
    yield f"{run_id}: " + (f"the drill failed: {', '.join(failed)}" if failed else "the drill was passed")


def document(
    run_id: str, plan: DrillPlan, fault: Fault, struck: Struck, recovery: Recovery, checks: Sequence[Check]
) -> dict[str, Any]:
    """The same for machines."""
    return {
        "run_id": run_id,
        "passed": all(check.held for check in checks),
        "plan": plan,
        "fault": {"kind": fault.fault, "host": fault.host, "ranks": fault.ranks, "step": struck.step},
        "recovery": recovery,
        "checks": checks,
    }
