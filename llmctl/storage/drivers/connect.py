"""From a URL to its driver: which kind it is, who we are there, and what to install where that is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError
from llmctl.storage.accounts import Account, account
from llmctl.storage.drivers.base import Driver, FsspecDriver
from llmctl.storage.faults import reason
from llmctl.storage.uris import masked

_EXTRAS = {"hdfs": "llmctl[hdfs]", "webhdfs": "llmctl[hdfs]", "s3": "llmctl[s3]", "s3a": "llmctl[s3]"}

_RENAMES = frozenset({"memory", "sftp", "ssh", "smb"})
"""Other drivers whose `mv` is one step for a reader."""


def connect(uri: str) -> tuple[Driver, str]:
    """The driver for a non-local URL, and its root as a path of that driver; nothing is contacted yet.

    Raises:
        ConfigError: an unknown scheme, a driver that is not installed, or an unusable entry of stores.yaml.
    """
    scheme, _, rest = uri.partition("://")
    found = account(scheme)
    try:
        if found.kind == "s3":
            return _s3(uri, rest, found)
        if found.kind == "hdfs":
            return _hdfs(uri, rest, found)
        if found.kind == "webhdfs":
            return _webhdfs(uri, rest, found)
        return _other(uri, scheme)
    except ImportError as error:
        extra = _EXTRAS.get(found.kind)
        hint = f"pip install '{extra}'" if extra else None
        name = f" ({extra})" if extra else ""
        raise ConfigError(f"{masked(uri)}: the driver is not installed{name}: {error}", hint=hint) from None


def _s3(uri: str, rest: str, found: Account) -> tuple[Driver, str]:
    from llmctl.storage.drivers import s3

    root = rest.rstrip("/")
    if not root or root.startswith("/"):
        raise ConfigError(f"{masked(uri)}: names no bucket", hint="like s3://bucket/folder")
    names = {"endpoint": "endpoint_url", "region": "region_name", "ca": "verify"}
    options: dict[str, Any] = {names.get(key, key): value for key, value in found.values.items()}
    if "verify" in options:
        options["verify"] = _path(options["verify"])
    return s3.S3Driver(s3.connect(options)), root


def _hdfs(uri: str, rest: str, found: Account) -> tuple[Driver, str]:
    from hdfs_native import Client

    from llmctl.storage.drivers.hdfs import HdfsDriver

    host, path = _authority(rest, found)
    values = found.values
    try:
        client = Client(
            f"hdfs://{host}" if host else None,  # None: fs.defaultFS of core-site.xml
            None,
            _path(values["conf_dir"]) if "conf_dir" in values else None,
            kerberos_principal=values.get("principal"),
            kerberos_keytab=_path(values["keytab"]) if "keytab" in values else None,
            kerberos_cache=_path(values["ccache"]) if "ccache" in values else None,
        )
    except (OSError, RuntimeError, ValueError) as error:
        hint = "like hdfs://namenode:8020/folder, or a nameservice of the core-site.xml in HADOOP_CONF_DIR"
        raise ConfigError(f"{masked(uri)}: {reason(error)}", hint=hint) from None
    return HdfsDriver(client), path


def _webhdfs(uri: str, rest: str, found: Account) -> tuple[Driver, str]:
    from llmctl.storage.drivers import webhdfs

    host, path = _authority(rest, found)
    user, _, host = host.rpartition("@")
    name, _, port = host.partition(":")
    https = found.values.get("https") == "true"
    if not name or (port and not port.isdigit()):
        raise ConfigError(f"{masked(uri)}: names no host", hint="like webhdfs://namenode:9870/folder")
    values = found.values
    options: dict[str, Any] = {
        "user": user or values.get("user"),
        "password": values.get("password"),
        "token": values.get("token"),
        "kerberos": values.get("kerberos") == "true",
        "use_https": https,
        "session_verify": _path(values["ca"]) if "ca" in values else True,
    }
    return webhdfs.WebHdfsDriver(
        webhdfs.connect(name, int(port or (9871 if https else 9870)), **options)
    ), path


def _other(uri: str, scheme: str) -> tuple[Driver, str]:
    from fsspec.core import url_to_fs

    try:
        fs, root = url_to_fs(uri)
    except ValueError as error:
        raise ConfigError(
            f"{masked(uri)}: {reason(error)}", hint="a path or a URL that fsspec knows"
        ) from None
    return FsspecDriver(fs, scheme.split("::", 1)[0] in _RENAMES), str(root)


def _path(text: str) -> str:
    """`~` is the home of whoever runs this, on the machine where it runs."""
    return str(Path(text).expanduser()) if text.startswith("~") else text


def _authority(rest: str, found: Account) -> tuple[str, str]:
    """(host:port, path): where an entry names the host, all of the URL is the path."""
    if "host" in found.values:
        return found.values["host"], ("/" + rest.strip("/")).rstrip("/")
    host, _, path = rest.partition("/")
    return host, ("/" + path.strip("/")).rstrip("/")
