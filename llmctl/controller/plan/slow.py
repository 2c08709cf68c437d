"""What `watch.slow` does about a slow host at the next attempt: leave it out, or give it less. Pure."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmctl.controller.config.models import JobFile
from llmctl.controller.plan.attempts import EXCLUDE, REBALANCE, Policy
from llmctl.errors import ConfigError
from llmctl.wire.recipe import RecipeSpec


def require_possible(job: JobFile, policy: Policy, recipe: RecipeSpec | None) -> None:
    """Raises ConfigError where `watch.slow` could never do what it says.

    Args:
        recipe: as it is planned, with its layout.
    """
    if policy.slow == EXCLUDE and not policy.elastic:
        raise ConfigError(
            f"watch.slow: {EXCLUDE} needs a run that may go on with fewer hosts",
            hint=f"set restarts.min_nodes below {len(policy.hosts)}",
        )
    if policy.slow != REBALANCE:
        return
    why = _unbalanced(job, policy, recipe)
    if why:
        raise ConfigError(f"watch.slow: {REBALANCE} can't be done: {why}", hint=f"use `warn` or `{EXCLUDE}`")


def _unbalanced(job: JobFile, policy: Policy, recipe: RecipeSpec | None) -> str:
    if not policy.supervised:
        return "it happens at the next attempt, and restarts.max is 0"
    if job.train.script is not None or recipe is None:
        return "a script cuts its own batches"
    if recipe.parallel is not None and not recipe.parallel.is_replicas:
        return f"with {recipe.parallel.name} every rank waits for others in each layer, whatever its share"
    if recipe.aggregation == "mean":
        return "with recipe.aggregation: mean each rank's mean counts alike, so the result would be another"
    return ""


def balanced(recipe: RecipeSpec, ranks: Mapping[str, int], speeds: Mapping[str, float]) -> RecipeSpec:
    """`recipe` with shares by speed; as it is where nothing was measured, or its layout has no such shares.

    Passes grow no larger than with equal shares, so that no rank needs more memory than was planned.

    Args:
        ranks: how many on each host, in rank order.
        speeds: samples per second of one rank, by host; one that was not measured counts as a usual one.
    """
    world = sum(ranks.values())
    replicas = recipe.parallel is None or recipe.parallel.is_replicas
    known = [speeds[host] for host in ranks if host in speeds]
    if not known or not replicas or recipe.aggregation == "mean" or recipe.global_batch < world:
        return recipe
    usual = statistics.median(known)
    each = [speeds.get(host, usual) for host, count in ranks.items() for _ in range(count)]
    largest = -(-recipe.global_batch // world)
    return replace(
        recipe, shares=shares_of(recipe.global_batch, each), micro_batch=min(recipe.micro_batch, largest)
    )


def shares_of(global_batch: int, speeds: Sequence[float]) -> tuple[int, ...]:
    """Samples of each rank, one at least, so that the last one is done as early as whole samples allow."""
    shares = [1] * len(speeds)
    ready = [(2 / speed, rank) for rank, speed in enumerate(speeds)]
    heapq.heapify(ready)
    for _ in range(global_batch - len(speeds)):
        _, rank = ready[0]
        shares[rank] += 1
        heapq.heapreplace(ready, ((shares[rank] + 1) / speeds[rank], rank))
    return tuple(shares)
