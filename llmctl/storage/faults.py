"""A driver's exception as one of ours: with the store's real reason and without its secrets."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from llmctl.errors import LlmctlError, NotFoundError, RefusedError, TransferError
from llmctl.storage.uris import masked

STAGE = "storage"

_JAVA_STACK = re.compile(r"(\\n|\n)\s*(\\t|\t)?at (java|org)\..*", re.S)
"""HDFS sends it along; in one client's text with its line ends escaped."""

_HINTS = {
    errno.ENOSPC: "free some room there, or use another place",
    errno.EDQUOT: "the quota there is used up",
    errno.EACCES: "check owner and permissions there",
    errno.EROFS: "that file system is mounted read-only",
}

_CREDENTIALS = re.compile(
    r"SignatureDoesNotMatch|InvalidAccessKeyId|AccessDenied|Forbidden|ExpiredToken|locate credentials"
)
_UNREACHED = re.compile(r"[Cc]onnection refused|Could not connect|No route to host|Name or service not known")
_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED|certificate verify failed")
_URLLIB3 = re.compile(r"Max retries exceeded.*\[Errno -?\d+\] (?P<why>[^'\")]+)")
"""Its text repeats the whole URL before it comes to the point."""


def reason(error: BaseException) -> str:
    """The innermost cause, because drivers wrap it: s3fs shows `[Errno 22] None` for any refusal."""
    seen = {id(error)}
    while error.__cause__ is not None and id(error.__cause__) not in seen:
        error = error.__cause__
        seen.add(id(error))
    text = _JAVA_STACK.sub("", getattr(error, "strerror", None) or str(error))
    if found := _URLLIB3.search(text):
        text = found["why"]
    return masked(" ".join(text.split()).rstrip(": ") or type(error).__name__)


def explain(error: BaseException, action: str, where: str) -> LlmctlError:
    """`error` of a driver as the error that a user sees: `WHERE: can't ACTION: REASON`."""
    if isinstance(error, LlmctlError):
        return error
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{where}: no such file or folder", stage=STAGE)
    why = reason(error)
    refused = _CREDENTIALS.search(why) or _UNTRUSTED.search(why)
    kind = RefusedError if refused else TransferError
    return kind(f"{where}: can't {action}: {why}", hint=_hint(error, why), stage=STAGE)


def _hint(error: BaseException, why: str) -> str | None:
    if _CREDENTIALS.search(why):
        return "check the credentials: AWS_* variables, AWS_PROFILE, or the store's entry in stores.yaml"
    if _UNTRUSTED.search(why):
        return "a private certificate authority? name its file as `ca` in stores.yaml, or in AWS_CA_BUNDLE"
    if _UNREACHED.search(why):
        return "is the store up and reachable from here, and is its address right?"
    return _HINTS.get(error.errno or 0) if isinstance(error, OSError) else None


@contextmanager
def explained(action: str, where: str) -> Iterator[None]:
    """Turns an OSError of the body into one of ours.

    Raises:
        NotFoundError: the file is not there.
        RefusedError: credentials or a certificate are not accepted. TransferError: any other failure.
    """
    try:
        yield
    except LlmctlError:
        raise
    except OSError as error:
        raise explain(error, action, where) from error
