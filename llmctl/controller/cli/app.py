"""The command line's root: it registers the verbs, and is the only place that catches LlmctlError and
picks the exit code."""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from llmctl import __version__, errors
from llmctl.controller.cli import (
    attach,
    ckpt,
    configcmd,
    data,
    demo,
    drill,
    hosts,
    infer,
    init,
    logs,
    plan,
    ps,
    pull,
    resume,
    status,
    stop,
    store,
    supervise,
    train,
    wait,
)
from llmctl.controller.ui.streams import show_what_can_be_shown
from llmctl.wire.exitcodes import ExitCode

EXIT_CODE: dict[type[errors.LlmctlError], ExitCode] = {
    errors.ConfigError: ExitCode.USAGE,
    errors.PreflightError: ExitCode.PREFLIGHT,
    errors.HostUnreachableError: ExitCode.UNREACHABLE,
    errors.HostIdentityError: ExitCode.IDENTITY,
    errors.ProvisionError: ExitCode.PROVISION,
    errors.TransferError: ExitCode.INTEGRITY,
    errors.IntegrityError: ExitCode.INTEGRITY,
    errors.RemoteCommandError: ExitCode.PREFLIGHT,
    errors.JobFailedError: ExitCode.JOB_FAILED,
    errors.NotFinishedError: ExitCode.NOT_FINISHED,
    errors.NotFoundError: ExitCode.NOT_FOUND,
    errors.CancelledRunError: ExitCode.CANCELLED,
    errors.DeadlineError: ExitCode.TIMEOUT,
}

app = typer.Typer(
    name="llmctl",
    help="Train language models on machines that you reach by SSH.",
    epilog="Start with: llmctl init · llmctl demo · llmctl train -f job.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        sys.stdout.write(f"llmctl {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train language models on machines that you reach by SSH.

    A host needs nothing beforehand but sshd and a Python that has torch; no server has to be kept alive.
    """


VERBS = (
    *(init, demo, plan, train, infer, status, ps, logs, wait, attach, stop, resume, drill, pull),
    *(hosts, data, store, ckpt, configcmd, supervise),
)

for verb in VERBS:
    verb.register(app)


def exit_code(error: errors.LlmctlError) -> ExitCode:
    """The code for an error; several hosts at once: that of the first."""
    if isinstance(error, errors.HostErrors):
        return exit_code(error.errors[0])
    for kind in type(error).__mro__:
        if kind in EXIT_CODE:
            return EXIT_CODE[kind]
    return ExitCode.INTERNAL


def main() -> None:
    """The `llmctl` command. Never a traceback for something that a user can cause."""
    show_what_can_be_shown()
    debug = "--debug" in itertools.takewhile(lambda word: word.startswith("-"), sys.argv[1:])
    try:
        app(prog_name="llmctl")
    except SystemExit as end:
        # The reader of our stdout (`| head`) has gone; typer has noticed and calls it a failure.
        gone = type(sys.stdout).__name__ == "PacifyFlushWrapper"
        if end.code == ExitCode.USAGE and not gone:
            _document_usage()
        sys.exit(ExitCode.OK if gone else end.code)
    except errors.LlmctlError as error:
        _fail(error, exit_code(error), debug=debug)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        told = errors.ConfigError(f"{where}{error.strerror or error}", hint="llmctl --debug … says where")
        _fail(told, ExitCode.USAGE, debug=debug)
    except Exception as error:  # noqa: BLE001 - the root: a bug is told in one line too
        told = errors.ConfigError(
            f"internal error: {error!r}", hint="a bug in llmctl; llmctl --debug … shows the traceback"
        )
        _fail(told, ExitCode.INTERNAL, debug=debug)


def _fail(error: errors.LlmctlError, code: ExitCode, *, debug: bool) -> NoReturn:
    from llmctl.controller.ui.console import Screen

    if debug:
        traceback.print_exc()
    screen = Screen()
    screen.error(error, code)
    if wants_json(sys.argv[1:]) and not Screen.has_shown_document:
        several = error.errors if isinstance(error, errors.HostErrors) else [error]
        told = [{"host": e.host, "stage": e.stage, "message": e.message, "hint": e.hint} for e in several]
        screen.document("error", {"exit_code": int(code), "errors": told})
    sys.exit(code)


def _document_usage() -> None:
    """What typer refused it has told on stderr; a machine gets a document all the same."""
    from llmctl.controller.ui.console import Screen

    if wants_json(sys.argv[1:]) and not Screen.has_shown_document:
        told = {"host": None, "stage": None, "message": "wrong usage, explained on stderr", "hint": None}
        Screen().document("error", {"exit_code": int(ExitCode.USAGE), "errors": [told]})


def wants_json(words: Sequence[str]) -> bool:
    """Whether `-o json` was typed: then stdout holds a document even if the verb failed before its own."""
    own = list(itertools.takewhile(lambda word: word != "--", words))
    if {"-ojson", "--output=json"} & set(own):
        return True
    return any(pair in (("-o", "json"), ("--output", "json")) for pair in itertools.pairwise(own))
