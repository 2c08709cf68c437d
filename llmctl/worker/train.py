"""`python -m llmctl.worker.train`: one rank of the built-in recipe.

Started by torchrun; reads its NodeSpec from $LLMCTL_RUN_DIR/node.json. A failure that the user can act on is
one line on stderr and exit code 1, or 93 where starting again can't help; anything else is a traceback in
this rank's log. 143: ended by SIGTERM, progress saved.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from llmctl.errors import ConfigError, IntegrityError, LlmctlError, NotFoundError
from llmctl.wire import environment
from llmctl.wire.codec import loads
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.layout import AttemptLayout, RunLayout
from llmctl.wire.specs import NodeSpec
from llmctl.worker.stop import StopSignal

HOPELESS = (ConfigError, IntegrityError, NotFoundError)
"""Settings and data do not get better by starting the job again."""


def read_spec(run_dir: str) -> NodeSpec:
    """What this host was told.

    Raises:
        ConfigError: there is no node.json.
    """
    path = Path(RunLayout(run_dir).node_spec)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="start this with `llmctl train`") from None
    return loads(NodeSpec, text)


def train(stop: StopSignal) -> int:
    """Run this rank's part of the job; returns its exit code."""
    run_dir = os.environ.get(environment.RUN_DIR)
    if not run_dir:
        raise ConfigError(f"{environment.RUN_DIR} is not set", hint="start this with `llmctl train`")
    spec = read_spec(run_dir)
    if spec.recipe is None:
        raise ConfigError(f"{run_dir}: this run has no recipe, but a script of its own")
    # After the cheap checks: these import torch.
    from llmctl.worker.loop import Loop
    from llmctl.worker.metrics import Metrics, memory_text, peak_memory
    from llmctl.worker.session import open_session
    from llmctl.worker.trainer import build

    session = open_session(spec)
    board = AttemptLayout(os.environ.get(environment.ATTEMPT_DIR, run_dir)).tensorboard
    metrics = Metrics(
        path=os.environ.get(environment.METRICS) if session.is_first else None,
        speaks=session.is_first,
        tensorboard=board if session.is_first and spec.recipe.tensorboard else None,
    )
    try:
        training = build(spec, spec.recipe, session, run_dir, metrics, stop)
        code = Loop(training).run()
        training.batches.close()
        needed = memory_text(spec.recipe.planned_memory, session.gather(peak_memory(session.device)))
        metrics.note(needed)
    finally:
        metrics.close()
    session.close()
    return code


def main() -> int:
    """The process: exit code and error line."""
    stop = StopSignal()
    stop.install()
    try:
        return train(stop)
    except LlmctlError as error:
        sys.stderr.write(f"error: {error.line()}\n")
        if error.hint:
            sys.stderr.write(f"  {error.hint}\n")
        return ExitCode.NO_RETRY if isinstance(error, HOPELESS) else 1


def leave(code: int) -> NoReturn:
    """End the process now. Taking down an interpreter with a live process group can abort in gloo's
    threads, and SIGABRT in place of the true exit code would send people looking for a crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_with_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> NoReturn:
    """`sys.excepthook`: the traceback as usual, then exit code 1 for certain."""
    sys.__excepthook__(kind, error, trace)
    leave(1)


if __name__ == "__main__":
    sys.excepthook = leave_with_traceback
    leave(main())
