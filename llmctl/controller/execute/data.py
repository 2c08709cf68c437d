"""Look at a job's corpora, and at its checkpoints' store, before anything starts, as far as this machine can.

What is wrong there for certain ends the start: no data set, a damaged manifest, no bucket, a refused account.
But the hosts may have a way to the store, or an account, that this machine has not; then what went wrong here
is only a note, and the first rank has the last word.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from llmctl.controller.config.types import Host, RunConfig
from llmctl.controller.transport.base import Transport
from llmctl.errors import IntegrityError, LlmctlError, NotFoundError, PreflightError
from llmctl.storage.uris import is_local, local_path
from llmctl.wire.manifests import ShardManifest

T = TypeVar("T")

DEADLINE_S = 15.0
STAGE = "data"

_NOWHERE = ".llmctl-is-it-there"
"""A folder that nobody has: listing it costs one request, however many checkpoints there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The remote corpora that could be read from here, and what to say of the others."""

    corpora: Mapping[str, ShardManifest]
    notes: tuple[str, ...] = ()


def look_beside(config: RunConfig) -> Future[Seen]:
    """`look` in a thread that keeps no process alive; its error is the future's."""
    future: Future[Seen] = Future()

    def run() -> None:
        try:
            future.set_result(look(config, os.environ))
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name="data-check", daemon=True).start()
    return future


def require_readable(transport: Transport, host: Host, uri: str) -> None:
    """Raises PreflightError where a file on this host is not there for us; a store is the host's to ask."""
    if not is_local(uri):
        return
    path = str(local_path(uri))
    if not transport.run(["test", "-r", path], deadline_s=DEADLINE_S, stage=STAGE).ok:
        raise PreflightError(
            f"{path} is not there, or may not be read",
            hint=f"it is read on {host.name}, the run's first host: copy it there, or name a store",
            host=host.name,
            stage=STAGE,
        )


def look(config: RunConfig, environ: Mapping[str, str]) -> Seen:
    """Read the manifests of the recipe's remote corpora, and list in the store of its checkpoints. A script's
    are not known: what it reads and writes may be anything.

    Raises:
        PreflightError: one of them is not there or can't be used, for the hosts as for us.
    """
    if config.job.train.script is not None:
        return Seen(corpora={})
    data, kept = config.job.data, config.job.checkpoint.uri
    corpora: dict[str, ShardManifest] = {}
    notes: list[str] = []
    for uri in [entry.uri for entry in data.corpora] if data else []:
        if not is_local(uri) and (manifest := _looked_at(_manifest, uri, config, environ, notes)):
            corpora[uri] = manifest
    if kept and not is_local(kept):
        _looked_at(_listing, kept, config, environ, notes)
    return Seen(corpora=corpora, notes=tuple(notes))


def _manifest(uri: str) -> ShardManifest:
    from llmctl.storage.corpus.dataset import read_manifest
    from llmctl.storage.files import open_store

    return read_manifest(open_store(uri, deadline_s=DEADLINE_S))


def _listing(uri: str) -> None:
    """A folder that is not there yet is an empty one; a bucket that is not there can't be listed."""
    from llmctl.storage.files import open_store

    open_store(uri, deadline_s=DEADLINE_S).list(_NOWHERE)


def _looked_at(
    look_at: Callable[[str], T], uri: str, config: RunConfig, environ: Mapping[str, str], notes: list[str]
) -> T | None:
    """What `look_at` found; None, and a note, where only this machine may be at fault."""
    try:
        return look_at(uri)
    except LlmctlError as error:
        if _holds_for_hosts(error, uri, config, environ):
            raise PreflightError(error.message, hint=_hint(error, uri, config), stage=STAGE) from error
        notes.append(f"not looked at from here: {error.message}; the hosts will")
        return None


def _holds_for_hosts(error: LlmctlError, uri: str, config: RunConfig, environ: Mapping[str, str]) -> bool:
    """Whether the hosts would meet the same."""
    if isinstance(error, IntegrityError):
        return True
    if isinstance(error, NotFoundError):
        return _is_same_place(uri, config, environ)
    if _is_untrusted(error):
        return uri.partition("://")[0] in config.secrets.accounts()
    return isinstance(error.__cause__, PermissionError) and _is_same_account(uri, config)


def _is_untrusted(error: LlmctlError) -> bool:
    """The store's certificate was not accepted."""
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What an error came from, also where a driver only raised it beside."""
    seen: set[int] = set()
    below: BaseException | None = error
    while below is not None and id(below) not in seen:
        seen.add(id(below))
        yield below
        below = below.__cause__ or below.__context__


def _hint(error: LlmctlError, uri: str, config: RunConfig) -> str | None:
    """Where the account came from that was refused; else what the store says."""
    if isinstance(error, (IntegrityError, NotFoundError)):
        return error.hint
    scheme = uri.partition("://")[0]
    if scheme in config.secrets.accounts() and not _is_untrusted(error):
        return f"check `{scheme}` of your stores.yaml: " + ", ".join(config.secrets.accounts()[scheme])
    return error.hint


def _is_same_place(uri: str, config: RunConfig, environ: Mapping[str, str]) -> bool:
    """The URL, or what is sent to the hosts, says where the store is."""
    scheme, _, rest = uri.partition("://")
    if scheme in config.secrets.accounts():
        return True
    if scheme not in ("s3", "s3a"):
        return not rest.startswith("/")
    endpoint = config.env.get("AWS_ENDPOINT_URL")
    return endpoint is not None and endpoint == environ.get("AWS_ENDPOINT_URL")


def _is_same_account(uri: str, config: RunConfig) -> bool:
    """Who we are there is sent to the hosts."""
    return uri.partition("://")[0] in config.secrets.accounts() or "AWS_ACCESS_KEY_ID" in config.secrets
