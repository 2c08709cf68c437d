"""`python -m llmctl.worker.train`: one rank of the built-in recipe, started by torchrun or by the agent.

Reads its NodeSpec from $LLMCTL_RUN_DIR/node.json; `process.main` says what its exit code means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmctl.worker.process import main

if TYPE_CHECKING:  # it imports torch
    from llmctl.worker.job import Job


def train(job: Job) -> int:
    """Run this rank's part of the job; returns its exit code."""
    from llmctl.worker.loop import run
    from llmctl.worker.recipe import build

    return run(build(job))


if __name__ == "__main__":
    main(train)
