"""The marker in a host's workdir that keeps new runs off it."""

from __future__ import annotations

from llmctl.controller.config.types import Host
from llmctl.controller.transport.base import Transport
from llmctl.errors import RemoteCommandError
from llmctl.wire import codec
from llmctl.wire.layout import DRAINED
from llmctl.wire.records import Drained

DEADLINE_S = 15.0

# $1 workdir, $2 name of the marker, $3 its text, or nothing to remove it.
SCRIPT = r"""
umask 077
W=$1
case $W in "~") W=$HOME;; "~/"*) W=$HOME/${W#??};; esac
[ -n "$3" ] || exec rm -f -- "$W/$2"
mkdir -p -- "$W" && printf '%s\n' "$3" >"$W/.$2.new" && mv -f -- "$W/.$2.new" "$W/$2"
"""


def write_marker(transport: Transport, host: Host, mark: Drained | None) -> None:
    """Write or remove the marker. Raises RemoteCommandError, and what the transport raises."""
    text = codec.dumps(mark) if mark else ""
    argv = ["sh", "-c", SCRIPT, "llmctl-drain", host.workdir, DRAINED, text]
    done = transport.run(argv, deadline_s=DEADLINE_S, stage="drain")
    if not done.ok:
        raise RemoteCommandError(
            f"the marker could not be {'written' if mark else 'removed'}: {done.stderr_tail(1)}",
            host=host.name,
            stage="drain",
            hint=f"look at {host.workdir} on {host.name}",
        )
