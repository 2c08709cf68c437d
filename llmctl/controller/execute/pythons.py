"""Give a host a Python where it has no fit one: uv installs it below the workdir, without root.

uv is taken from the host, or sent from here out of its own wheel. It downloads the Python itself, so the host
(or a mirror that UV_PYTHON_INSTALL_MIRROR names there) must be within its reach.
"""

from __future__ import annotations

import re
import zipfile

from llmctl.controller.config.types import Host
from llmctl.controller.execute.locking import Locker
from llmctl.controller.plan.bootstrap import Target
from llmctl.controller.transport.base import Transport
from llmctl.controller.transport.files import push_file
from llmctl.errors import LlmctlError, ProvisionError

STAGE = "bootstrap"
INSTALL_S = 900.0
NO_UV = 98

# $1 workdir, $2 version. The newest patch release that is there afterwards is told.
INSTALL = r"""
W=$1; V=$2
here() { for p in "$W"/python/cpython-"$V".*/bin/python"$V"; do [ -x "$p" ] && P=$p; done; }
P=; here; [ -z "$P" ] || { printf '%s\n' "$P"; exit 0; }
for UV in "$W"/python/.uv/uv "$(command -v uv)" "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv"; do
  [ -n "$UV" ] && [ -x "$UV" ] && break; UV=
done
[ -n "$UV" ] || exit 98
export UV_PYTHON_INSTALL_DIR="$W/python" UV_CACHE_DIR="$W/python/.cache" UV_NO_PROGRESS=1
"$UV" python install "$V" >&2 || exit 1
here; [ -n "$P" ] && printf '%s\n' "$P"
"""

# $1 workdir, $2 interpreter.
DEFAULT = r"""
mkdir -p "$1/python" && cd "$1/python" && ln -sfn "$2" ".default.$$" && mv -f ".default.$$" default
"""


def install(transport: Transport, host: Host, workdir: str, target: Target, locker: Locker) -> str:
    """The path of a Python of that version on the host, installed if need be.

    Raises:
        ProvisionError: neither uv nor a Python could be had; says what to do.
    """
    argv = ["sh", "-c", INSTALL, "llmctl-python", workdir, target.python]
    done = transport.run(argv, deadline_s=INSTALL_S, stage=STAGE)
    if done.code == NO_UV:
        _send_uv(transport, workdir, target, locker)
        done = transport.run(argv, deadline_s=INSTALL_S, stage=STAGE)
    path = done.stdout.decode(errors="replace").strip()
    if done.ok and path:
        return path
    raise ProvisionError(
        f"uv could not install Python {target.python}: {_cause(done.stderr)}",
        host=host.name,
        stage=STAGE,
        hint=f"uv downloads it; without internet install one there, and set `python:` for {host.name}",
    )


def make_default(transport: Transport, workdir: str, python: str) -> None:
    """That interpreter is llmctl's own on this host from now on."""
    done = transport.run(["sh", "-c", DEFAULT, "llmctl", workdir, python], deadline_s=30.0, stage=STAGE)
    if not done.ok:
        raise ProvisionError(f"{workdir}/python/default: {done.stderr_tail(1)}", stage=STAGE)


def _send_uv(transport: Transport, workdir: str, target: Target, locker: Locker) -> None:
    try:
        blob = locker.download_one("uv", target)
    except LlmctlError as error:
        raise ProvisionError(
            f"no fit Python, and uv that would install one can't be had: {error.message}",
            host=transport.host,
            stage=STAGE,
            hint=f"install Python {target.python} there, and set `python:` for {transport.host}",
        ) from error
    with zipfile.ZipFile(locker.path(blob)) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".data/scripts/uv"))
        data = wheel.read(name)
    push_file(transport, data, f"{workdir}/python/.uv/uv", mode=0o700, deadline_s=INSTALL_S)


def _cause(stderr: bytes) -> str:
    """uv prints a chain of causes: the last one is the reason."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return re.sub(r"^(?i:caused by|cause|error): *", "", lines[-1]) if lines else "it said nothing"
