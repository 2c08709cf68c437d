"""One rank as a process: settings, exit code and error line, for the recipe and your own script alike."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from llmctl.errors import (
    ConfigError,
    DivergedError,
    IntegrityError,
    LlmctlError,
    NotFoundError,
    RefusedError,
)
from llmctl.wire import environment
from llmctl.wire.codec import loads
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.layout import RunLayout
from llmctl.wire.specs import NodeSpec
from llmctl.worker.stop import StopSignal

if TYPE_CHECKING:  # it imports torch
    from llmctl.worker.job import Job

HOPELESS = (ConfigError, DivergedError, IntegrityError, NotFoundError, RefusedError)
"""Settings, data, accounts and a loss that is no number do not get better by starting the job again."""


def main(train: Callable[[Job], int]) -> NoReturn:
    """Be one rank of a run: join the others, call `train(job)`, and end the process.

    The exit code is what `train` returns (0; 143 where SIGTERM ended it and the progress is saved). A failure
    that the user can act on is one line on stderr and exit code 1, or 93 where starting again can't help;
    anything else is a traceback and exit code 1.
    """
    sys.excepthook = leave_with_traceback
    leave(exit_code(train))


def exit_code(train: Callable[[Job], int]) -> int:
    """`main`, but for the end of the process."""
    stop = StopSignal()
    stop.install()
    try:
        return run(train, stop)
    except LlmctlError as error:
        sys.stderr.write(f"error: {error.line()}\n")
        if error.hint:
            sys.stderr.write(f"  {error.hint}\n")
        return ExitCode.NO_RETRY if isinstance(error, HOPELESS) else 1


def run(train: Callable[[Job], int], stop: StopSignal) -> int:
    """`main` inside the process: what `train` returns, or raises."""
    run_dir = os.environ.get(environment.RUN_DIR)
    if not run_dir:
        raise ConfigError(f"{environment.RUN_DIR} is not set", hint="start this with `llmctl train`")
    spec = read_spec(run_dir)
    if spec.recipe is None:
        raise ConfigError(
            f"{run_dir}: this run has no recipe",
            hint="write `recipe:` into the job: steps, global_batch, optimizer ...",
        )
    # After the cheap checks: it imports torch.
    from llmctl.worker.job import open_job

    with open_job(spec, spec.recipe, run_dir, stop) as job:
        return train(job)


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


def leave(code: int) -> NoReturn:
    """End the process now. Taking down an interpreter with a live process group can abort in gloo's
    threads, and SIGABRT in place of the true exit code would send people looking for a crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_with_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> NoReturn:
    """`sys.excepthook`: the traceback as usual, then exit code 1 for certain. To the process's own stderr:
    init_process_group wraps this hook, and what is in torch's buffer when we end here is never written."""
    sys.stderr = sys.__stderr__
    sys.__excepthook__(kind, error, trace)
    leave(1)
