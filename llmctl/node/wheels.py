"""Files that environments are made from, each in a folder named by its content: `wheels/<sha256>/<name>`.

A file that is not what its folder says is removed when it is found: it is sent again.
"""

from __future__ import annotations

import hashlib
import os
import shutil

from llmctl.errors import IntegrityError
from llmctl.wire.environments import Blob, HaveReply, HaveRequest
from llmctl.wire.layout import HostLayout


def have(workdir: str, request: HaveRequest) -> HaveReply:
    """What of these is missing. Sizes are compared here; hashes before a file is used."""
    host = HostLayout(os.path.expanduser(workdir))
    missing = tuple(blob.sha256 for blob in request.blobs if not _whole(host, blob))
    os.makedirs(host.wheels, mode=0o700, exist_ok=True)
    return HaveReply(missing=missing, free=shutil.disk_usage(host.wheels).free)


def checked(host: HostLayout, blob: Blob) -> str:
    """The path of a file whose content was read and is right. Raises IntegrityError, OSError."""
    path = host.wheel(blob.sha256, blob.name)
    if digest(path) == blob.sha256:
        return path
    os.unlink(path)
    raise IntegrityError(
        f"{blob.name} is damaged there and was removed", hint="run it again: it is sent anew"
    )


def digest(path: str) -> str:
    """SHA-256 of a file, in hex."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while True:
            data = file.read(1 << 20)
            if not data:
                return total.hexdigest()
            total.update(data)


def _whole(host: HostLayout, blob: Blob) -> bool:
    try:
        return os.path.getsize(host.wheel(blob.sha256, blob.name)) == blob.size
    except OSError:
        return False
