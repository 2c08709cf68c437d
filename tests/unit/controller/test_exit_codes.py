"""Every error has its exit code, chosen in one place."""

from __future__ import annotations

import pytest

from llmctl import errors
from llmctl.controller.cli.app import EXIT_CODE, exit_code
from llmctl.wire.exitcodes import MEANING, ExitCode


def _subclasses() -> list[type[errors.LlmctlError]]:
    return [kind for kind in errors.LlmctlError.__subclasses__() if kind is not errors.HostErrors]


@pytest.mark.parametrize("kind", _subclasses())
def test_every_error_has_a_code_of_its_own_choice(kind: type[errors.LlmctlError]) -> None:
    """A new error class without a code would say `internal`: this test names it."""
    assert kind in EXIT_CODE
    assert exit_code(kind("x")) is not ExitCode.INTERNAL


def test_several_hosts_end_with_the_first_hosts_code() -> None:
    """One code for CI, all lines for people."""
    both = errors.HostErrors([errors.HostIdentityError("k"), errors.HostUnreachableError("u")])
    assert exit_code(both) is ExitCode.IDENTITY


def test_every_code_is_documented() -> None:
    """The table in the docs is made from MEANING."""
    assert set(MEANING) == set(ExitCode)
