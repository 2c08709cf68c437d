"""A loss that is no number, or far above its neighbours: leave the update out, or end the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from llmctl.errors import ConfigError, DivergedError
from llmctl.storage.corpus.order import SampleRef
from llmctl.wire.recipe import RecipeSpec
from llmctl.worker.step import StepNumbers

POLICIES = ("stop", "skip")

WARM_UP = 10
"""Good steps before a loss can be a spike: the first ones fall too fast to be compared."""

SMOOTHING = 0.1
"""Weight of the newest loss in the running mean."""

MAX_SKIPS = 10
"""Updates left out in a row; after that many the run will not recover by itself."""


class BadLoss:
    """Watches the losses of one run; the same on all ranks, because the numbers are.

    Args:
        samples_of: the samples of a step (counted from 1), for the log.
        note: a line for people.
    """

    def __init__(
        self,
        recipe: RecipeSpec,
        samples_of: Callable[[int], Sequence[SampleRef]],
        note: Callable[[str], None],
    ) -> None:
        if recipe.on_bad_loss not in POLICIES:
            raise ConfigError(
                f"recipe.on_bad_loss: {recipe.on_bad_loss!r} is not one of {', '.join(POLICIES)}",
                stage="recipe",
            )
        self._skips = recipe.on_bad_loss == "skip"
        self._threshold = recipe.spike_threshold
        self._samples_of = samples_of
        self._note = note
        self._mean = 0.0
        self._good = 0
        self._in_a_row = 0

    @property
    def limit(self) -> float | None:
        """The loss above which a step's update is left out; None: there is none yet."""
        if self._threshold is None or self._good < WARM_UP:
            return None
        return self._threshold * self._mean

    def judge(self, step: int, numbers: StepNumbers) -> None:
        """Take note of a step's numbers.

        Raises:
            DivergedError: they are bad and the policy is `stop`, or too many in a row were.
        """
        if not numbers.skipped:
            self._remember(numbers.loss)
            return
        self._in_a_row += 1
        words = f"step {step}: {_what(numbers, self._mean)}"
        if self._skips and self._in_a_row <= MAX_SKIPS:
            self._note(f"{words}; its update is left out; {self._samples(step)}")
            return
        self._note(f"{words}; {self._samples(step)}")
        often = f", {self._in_a_row} steps in a row" if self._in_a_row > 1 else ""
        raise DivergedError(
            f"{words}{often}",
            hint="lower the learning rate, or resume from an earlier checkpoint with precision: fp32",
        )

    def _remember(self, loss: float) -> None:
        self._in_a_row = 0
        self._mean += (loss - self._mean) * (SMOOTHING if self._good else 1.0)
        self._good += 1

    def _samples(self, step: int) -> str:
        """Shard and first token of each sample of the global batch."""
        return "its samples: " + " ".join(f"{ref.shard}:{ref.start}" for ref in self._samples_of(step))


def _what(numbers: StepNumbers, mean: float) -> str:
    if math.isfinite(numbers.loss) and math.isfinite(numbers.grad_norm):
        return f"the loss is {numbers.loss:.4g}, {numbers.loss / mean:.1f} times the running mean"
    return f"the loss is {numbers.loss}, the gradient norm {numbers.grad_norm}"
