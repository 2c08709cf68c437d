"""Every error that llmctl raises on purpose: one root, one line for the user.

Imported on both sides of the wire, so this file imports nothing and stays readable for Python 3.9.
The exit code of each class is chosen in one place, `controller/cli/app.py`.
"""

from __future__ import annotations


class LlmctlError(Exception):
    """Something the user can understand and act on.

    Args:
        message: what happened, one line, no trailing full stop.
        hint: what to do next, one line; a command where there is one.
        host: the inventory name of the host it happened on.
        stage: the stage that was running (`connect`, `push`, `probe`, `launch` ...).
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        host: str | None = None,
        stage: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.host = host
        self.stage = stage

    def line(self) -> str:
        """The one line that the user sees: `host: stage: message`, without the hint."""
        return ": ".join(part for part in (self.host, self.stage, self.message) if part)

    def __str__(self) -> str:
        return self.line()


class ConfigError(LlmctlError, ValueError):
    """A command line, job or inventory that can't mean anything; exit code 2."""


class PreflightError(LlmctlError, RuntimeError):
    """A host is reachable but not fit for the job: no python, no torch, no room."""


class BusyError(PreflightError):
    """A host is held by another run, and this one was not to share it."""


class HostUnreachableError(LlmctlError, ConnectionError):
    """No working SSH connection: refused, timed out, cut, or no accepted key."""


class HostIdentityError(LlmctlError, ConnectionError):
    """The host's key is unknown or not the known one; never connected to silently."""


class ProvisionError(LlmctlError, RuntimeError):
    """A host could not be made ready."""


class ReplacedError(ProvisionError):
    """A supervisor that another one has replaced: it may do nothing for its run any more."""


class TransferError(LlmctlError, OSError):
    """A push or pull that did not complete; nothing half-written is visible."""


class RefusedError(TransferError):
    """A store that does not know or trust us, or we it: the same request again gets the same answer."""


class IntegrityError(LlmctlError, ValueError):
    """Bytes that are not what their manifest says: never used, never renamed into place."""


class RemoteCommandError(LlmctlError, RuntimeError):
    """A remote command of ours failed: judged by its exit status, never by its text."""


class JobFailedError(LlmctlError, RuntimeError):
    """The user's job ended with a failure of its own."""


class DivergedError(JobFailedError):
    """Training left the road: the same steps from the same checkpoint would leave it again."""


class NotFinishedError(LlmctlError, RuntimeError):
    """Asked for the verdict of a run that has none yet."""


class NotFoundError(LlmctlError, LookupError):
    """No run, host or file of that name."""


class CancelledRunError(LlmctlError, RuntimeError):
    """The run was stopped on request."""


class DeadlineError(LlmctlError, TimeoutError):
    """A wait reached its deadline."""


class HostErrors(LlmctlError, RuntimeError):
    """Several hosts failed at once: every one is told, the first one gives the exit code."""

    def __init__(self, errors: list[LlmctlError]) -> None:
        first = errors[0]
        super().__init__(first.message, hint=first.hint, host=first.host, stage=first.stage)
        self.errors = errors
