"""What this host reads from the job's corpora and writes to its stores; a checkpoint of the real size."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from llmctl.errors import LlmctlError, TransferError
from llmctl.storage.drills import contents, speed
from llmctl.storage.drills.ground import Ground
from llmctl.storage.files import Store, open_store
from llmctl.storage.transfer import copy_in
from llmctl.storage.uris import is_local, join, local_path
from llmctl.wire.deep import DeepReply, DeepRequest
from llmctl.wire.manifests import SHARD_MANIFEST

CALL_S = 20.0
PART = 64 << 20
SENT_AT_ONCE = 4
READ = 4 << 20


def read(request: DeepRequest) -> DeepReply:
    """The manifest, then the largest file for as long as `seconds` allow."""
    store = open_store(request.uri, deadline_s=CALL_S)
    store.read_bytes(SHARD_MANIFEST)
    files = [file for file in store.list() if file.path != SHARD_MANIFEST]
    if not files:
        raise TransferError(f"{store.uri} has a manifest and no shard")
    largest = max(files, key=lambda file: file.size)
    got, began = 0, time.monotonic()
    with store.open_read(largest.path) as stream:
        while got < request.bytes and time.monotonic() - began < request.seconds:
            data = stream.read(READ)
            if not data:
                break
            got += len(data)
    return DeepReply(down=got / max(1e-6, time.monotonic() - began), bytes=got)


def write(request: DeepRequest) -> DeepReply:
    """A file there and back, then several at once, in a folder of its own that goes at the end."""
    name = f"llmctl-check-{secrets.token_hex(4)}"
    above = open_store(request.uri, deadline_s=CALL_S)
    ground = Ground(
        store=open_store(join(request.uri, name), deadline_s=CALL_S),
        seconds=request.seconds,
        size=request.bytes,
    )
    try:
        for step in (contents.write_and_read, speed.throughput, speed.room):
            step(ground)
    finally:
        _forget(above, name)
    numbers = ground.numbers
    free = int(numbers["free_bytes"]) if "free_bytes" in numbers else None
    return DeepReply(up=numbers["up_bytes_per_s"], down=numbers["down_bytes_per_s"], free=free)


def trial(request: DeepRequest) -> DeepReply:
    """Write as many bytes as a checkpoint will have, or as fit the time; nothing of it stays."""
    return _trial_disk(request) if is_local(request.uri) else _trial_store(request)


def _trial_disk(request: DeepRequest) -> DeepReply:
    """On the disk itself: files are synced, as a checkpoint's are before it counts."""
    folder = local_path(request.uri)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < request.bytes:
        raise TransferError(
            f"no room for a checkpoint: {request.bytes / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB free",
            hint="lower checkpoint.keep or the model's size, or set checkpoint.uri to a larger store",
        )
    scratch = Path(tempfile.mkdtemp(prefix=".llmctl-trial-", dir=folder))
    try:
        done, began = 0, time.monotonic()
        data = secrets.token_bytes(min(PART, max(1, request.bytes)))
        for number in range(-(-request.bytes // PART)):
            done += _written(scratch / str(number), data[: request.bytes - done])
            if time.monotonic() - began > request.seconds:
                break
        return DeepReply(bytes=done, seconds=time.monotonic() - began, free=free)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _written(path: Path, data: bytes) -> int:
    with path.open("xb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())
    return len(data)


def _trial_store(request: DeepRequest) -> DeepReply:
    """Several files at once, as a checkpoint is uploaded."""
    name = f"llmctl-trial-{secrets.token_hex(4)}"
    above = open_store(request.uri, deadline_s=CALL_S)
    store = open_store(join(request.uri, name), deadline_s=CALL_S)
    done, number, began = 0, 0, time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="llmctl-trial-") as scratch:
            part = Path(scratch) / "part"
            part.write_bytes(secrets.token_bytes(min(PART, max(1, request.bytes // SENT_AT_ONCE))))
            while done < request.bytes and time.monotonic() - began < request.seconds:
                pairs = [(part, f"part-{number + turn}") for turn in range(SENT_AT_ONCE)]
                done += copy_in(store, pairs, workers=SENT_AT_ONCE).bytes
                number += SENT_AT_ONCE
        return DeepReply(bytes=min(done, request.bytes), seconds=time.monotonic() - began)
    finally:
        _forget(above, name)


def _forget(store: Store, name: str) -> None:
    """What went wrong before is told, not what its removal may trip over."""
    with suppress(LlmctlError):
        store.delete(name)
