"""One result per host: an error of a host carries that host's name."""

from __future__ import annotations

import pytest

from llmctl.controller.config.types import Host
from llmctl.controller.transport.pool import Connections
from llmctl.errors import ConfigError, LlmctlError, TransferError

HOSTS = (Host(name="a", addr="local"), Host(name="b", addr="local", workdir="~/b"))


def failing(error: LlmctlError) -> dict[str, LlmctlError]:
    def fail(_host: Host) -> LlmctlError:
        raise error

    with Connections(HOSTS) as connections:
        return connections.each(HOSTS, fail)


def test_a_shared_error_gets_each_hosts_name() -> None:
    """Two hosts that fail by one error object are told under their own names."""
    shared = TransferError("no room", hint="make some", stage="push")
    results = failing(shared)
    assert [results[name].line() for name in ("a", "b")] == ["a: push: no room", "b: push: no room"]
    assert {type(error) for error in results.values()} == {TransferError}
    assert results["a"].hint == "make some"
    assert shared.host is None


@pytest.mark.parametrize("host", [None, "gateway"])
def test_an_error_that_is_not_the_hosts_keeps_its_place(host: str | None) -> None:
    """A mistake in the local tree is no host's, and a name that is there stays."""
    results = failing(ConfigError("x is not a folder", stage="push", host=host))
    assert [error.host for error in results.values()] == [host, host]
