"""`contact`: hear from the supervisor of a run, renew the lease of its ranks, and answer how they are.

Refuses a supervisor that another one has replaced: so two never act at once.
"""

from __future__ import annotations

import dataclasses
import os
import select
import socket
import time
from typing import Optional

from llmctl.node import atomic, procs, rundir
from llmctl.node.agents import occupants
from llmctl.node.status import status
from llmctl.wire import codec
from llmctl.wire.contact import ContactReply, ContactRequest, Probe
from llmctl.wire.layout import RunLayout
from llmctl.wire.supervision import Supervision

_LOCK_DEADLINE_S = 4.0
_PROBE_S = 2.0


def contact(workdir: str, run_id: str, request: ContactRequest) -> ContactReply:
    """One beat.

    Raises:
        NotFoundError: no such run here.
        ReplacedError: another supervisor acts for the run.
    """
    run = rundir.find(rundir.host_layout(workdir), run_id)
    with rundir.locked(run, deadline_s=_LOCK_DEADLINE_S, name=".supervisor"):
        _take_in(run, request.supervision)
    nodes = status(workdir, run_id).nodes
    return ContactReply(
        now=time.time(),
        mono=time.monotonic(),
        boot_id=procs.boot_id(),
        status=nodes[0] if nodes else None,
        silent=silent(request.probes),
        stopped=stopped_by_person(run),
        held_by=_held_by(run, workdir),
    )


def _held_by(run: RunLayout, workdir: str) -> tuple[str, ...]:
    """Asked only where this run has nothing going on: another one may have come while it was away."""
    view = rundir.look(run)
    if view is None or view.exit is None or view.spec.share:
        return ()
    return occupants(rundir.host_layout(workdir), but=view.spec.run_id, shared_too=False)


def stopped_by_person(run: RunLayout) -> str:
    """Why a person has stopped the run; "" where nobody has."""
    request = rundir.read_stop(run)
    return request.reason if request is not None and request.epoch == 0 else ""


def _take_in(run: RunLayout, told: Supervision) -> None:
    held = rundir.read_supervision(run)
    rundir.refuse_replaced(run, told.epoch, told.holder)
    _forget_stop(run, held, told.epoch)
    boot = procs.boot_id()
    valid_until = told.valid_until if told.boot_id == boot else None
    if valid_until is None and held is not None and held.boot_id == boot and held.attempt == told.attempt:
        valid_until = held.valid_until
    kept = dataclasses.replace(told, heard_at=time.time(), valid_until=valid_until, boot_id=boot)
    _write(run.supervisor, codec.dumps(kept))


def _write(path: str, text: str) -> None:
    """A full disk must not end a job that needs none: its lease is renewed in the file's own blocks."""
    try:
        atomic.write(path, text)
    except OSError:
        there = os.stat(path)
        if len(text.encode()) > there.st_blocks * 512:  # half a text would forget who may act here
            raise
        atomic.overwrite(path, text.ljust(there.st_size))


def _forget_stop(run: RunLayout, held: Optional[Supervision], epoch: int) -> None:
    """A new supervisor was called by somebody who wants the run to go on. The first one was not."""
    view = rundir.look(run)
    if view is None or view.exit is None:
        return
    if epoch > (view.spec.epoch if held is None else held.epoch):
        atomic.remove(run.stop_request)


def silent(probes: tuple[Probe, ...]) -> tuple[str, ...]:
    """Those that neither accept nor refuse a connection in time; all at once."""
    waiting: dict[int, tuple[socket.socket, str]] = {}
    mute: list[str] = []
    for probe in probes:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect_ex((probe.addr, probe.port))
        except OSError:  # no such address
            mute.append(probe.host)
            sock.close()
            continue
        waiting[sock.fileno()] = (sock, probe.host)
    deadline = time.monotonic() + _PROBE_S
    while waiting and time.monotonic() < deadline:
        _, ready, _ = select.select([], list(waiting), [], max(0.0, deadline - time.monotonic()))
        for fd in ready:
            sock, host = waiting.pop(fd)
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) not in _ANSWERS:
                mute.append(host)
            sock.close()
    for sock, host in waiting.values():
        mute.append(host)
        sock.close()
    return tuple(sorted(mute))


_ANSWERS = (0, 111)
"""Connected, or ECONNREFUSED: either way somebody is there."""
