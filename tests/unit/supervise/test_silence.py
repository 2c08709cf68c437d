"""A supervisor that hears no host of its run any more."""

from __future__ import annotations

import socket

import pytest

from llmctl.controller.backends.archive import build
from llmctl.controller.config.models import JobFile
from llmctl.controller.config.types import Host, RunConfig, Secrets
from llmctl.controller.plan.attempts import policy_of
from llmctl.controller.supervise import loop
from llmctl.controller.supervise.charge import Charge
from llmctl.controller.transport.pool import Connections
from llmctl.wire.specs import Peer
from llmctl.wire.states import RunState


def test_a_supervisor_that_hears_nobody_ends_some_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the bound it says so and leaves the run as it is: lost-contact, no verdict, no new attempt."""
    monkeypatch.setattr(loop, "SILENCE_S", 1.0)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:  # closed on leaving: nobody listens there
        port = server.getsockname()[1]
    hosts = tuple(Host(name=name, addr="127.0.0.1", port=port, user="nobody") for name in "ab")
    config = RunConfig(
        hosts=hosts,
        job=JobFile.model_validate({"version": 1, "name": "quiet"}),
        base="/",
        env={},
        secrets=Secrets({}),
    )
    charge = Charge(
        config=config,
        policy=policy_of(config.job, ["a", "b"]),
        run_id="quiet-1234",
        attempt=1,
        hosts=("a", "b"),
        peers=tuple(
            Peer(host=name, addr="127.0.0.1", nproc=1, node_rank=n, first_rank=n)
            for n, name in enumerate("ab")
        ),
        epoch=1,
        holder="me",
    )
    with Connections(hosts, connect_timeout_s=1.0) as connections:
        end = loop.Supervisor(charge, connections, build(), _never, said.append).run()
    assert end.state is RunState.LOST_CONTACT
    assert "llmctl resume" in end.why
    assert said == [end.why]


def _never(*_: object) -> tuple[Peer, ...]:
    raise AssertionError("no attempt may be started")
