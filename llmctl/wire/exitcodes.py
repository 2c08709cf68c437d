"""The exit codes of `llmctl`, in one place. Documented in docs/reference/exit-codes.md from here."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a finished `llmctl` process says to a shell or a CI pipeline."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    PREFLIGHT = 10
    UNREACHABLE = 11
    IDENTITY = 12
    PROVISION = 20
    INTEGRITY = 21
    NO_RETRY = 93
    JOB_FAILED = 100
    NOT_FINISHED = 101
    NOT_FOUND = 102
    CANCELLED = 103
    TIMEOUT = 124
    DETACHED = 130


MEANING = {
    ExitCode.OK: "the command did what it says; for `train` and `wait`: the run succeeded",
    ExitCode.INTERNAL: "a bug in llmctl; `--debug` shows the traceback",
    ExitCode.USAGE: "a wrong command line, job file or hosts file",
    ExitCode.PREFLIGHT: "a host is not fit for the job (no python, no torch, no room)",
    ExitCode.UNREACHABLE: "a host could not be reached",
    ExitCode.IDENTITY: "a host's key is unknown or has changed",
    ExitCode.PROVISION: "a host could not be made ready",
    ExitCode.INTEGRITY: "data or a transfer failed its check",
    ExitCode.NO_RETRY: "a worker's own code for `do not start me again`",
    ExitCode.JOB_FAILED: "the job itself failed",
    ExitCode.NOT_FINISHED: "the run has no verdict yet",
    ExitCode.NOT_FOUND: "no such run, host or file",
    ExitCode.CANCELLED: "the run was stopped on request",
    ExitCode.TIMEOUT: "a wait reached its deadline",
    ExitCode.DETACHED: "Ctrl-C: detached, the run goes on",
}
