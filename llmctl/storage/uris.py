"""What a store's URI means: local or not, safe to show or not, and what may stand below it."""

from __future__ import annotations

import re
from pathlib import Path

from llmctl.errors import ConfigError

_LOCAL_SCHEMES = ("file://", "local://")
# A secret may hold `/` and `@`; digits and then a `/` are a port, behind which `@` is part of the path.
_PASSWORD = re.compile(r"(?P<head>://[^/@:\s]*):(?!\d{1,5}/)\S*@")
_SECRET_QUERY = re.compile(
    r"(?P<name>[?&][^=&\s]*(?:key|token|secret|sig|signature|password|credential)[^=&\s]*)=[^&\s]*", re.I
)


def masked(text: str) -> str:
    """`text` with the passwords and signatures of any URL in it replaced by `***`."""
    return _SECRET_QUERY.sub(r"\g<name>=***", _PASSWORD.sub(r"\g<head>:***@", text))


def refuse_credentials(uri: str) -> None:
    """A URL ends up in job files, process lists and logs, so it is no place for a secret.

    Raises:
        ConfigError: `uri` carries a password or a signature.
    """
    if masked(uri) != uri:
        raise ConfigError(
            f"{masked(uri)}: credentials don't belong into a URL",
            hint="use the usual places of the store: AWS_* or a profile, core-site.xml, FSSPEC_* variables",
        )


def is_local(uri: str) -> bool:
    """Whether `uri` is a plain path or a file:// URL."""
    return "://" not in uri or uri.startswith(_LOCAL_SCHEMES)


def local_path(uri: str) -> Path:
    """The absolute path that a local `uri` means; `~` is this user's home."""
    for scheme in _LOCAL_SCHEMES:
        uri = uri.removeprefix(scheme)
    return Path(uri).expanduser().absolute()


def split(uri: str) -> tuple[str, str]:
    """A URI as (URI of its folder, name)."""
    if is_local(uri):
        path = local_path(uri)
        return str(path.parent), path.name
    head, _, name = uri.rstrip("/").rpartition("/")
    return (head + "/" if head.endswith("/") else head), name


def join(uri: str, path: str) -> str:
    """The URI of `path` below `uri`."""
    if not path:
        return uri
    head, is_url, rest = uri.partition("://")
    if is_url and not rest.strip("/"):  # `hdfs:///`: less than these slashes would be a local path, or a host
        return f"{head}://{'/' if rest else ''}{path}"
    return uri.rstrip("/") + "/" + path


def checked(path: str) -> str:
    """A path below a store's root, as it came, or refused.

    Raises:
        ConfigError: absolute, empty, or leaving the root.
    """
    parts = path.split("/")
    if not path or path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"{path!r} is not a path below a store")
    return path
