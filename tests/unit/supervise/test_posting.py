"""A supervisor on a host: how that host sees the others, and what it is asked to have."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from llmctl.controller.config.types import Host
from llmctl.controller.supervise.posting import lacking, seen_from
from llmctl.controller.supervise.remote import NEEDED
from llmctl.errors import ConfigError

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_what_a_supervisor_needs_is_what_llmctl_depends_on() -> None:
    """The list of the far end names exactly the requirements of the package."""
    wanted = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    assert sorted(NEEDED.values()) == sorted(wanted)


def test_nothing_that_only_the_laptop_has_is_sent() -> None:
    """Key files and jump hosts stay out; addresses are those the job uses, the host itself needs no SSH."""
    a = Host(name="a", addr="10.0.0.1", user="u", identity_file="~/.ssh/mine", internal_addr="192.168.0.1")
    b = Host(name="b", addr="203.0.113.9", user="u", port=2222, proxy_jump="gate")
    c = Host(name="c", addr="203.0.113.10", user="v")
    seen = {host.name: host for host in seen_from("a", (a, b, c), {"b": "192.168.0.2"})}
    assert seen["a"].is_local
    assert seen["a"].internal_addr == "192.168.0.1"
    assert [(seen[name].addr, seen[name].user) for name in "bc"] == [
        ("192.168.0.2", "u"),
        ("203.0.113.10", "v"),
    ]
    assert seen["b"].port == 2222
    assert all(host.identity_file is None and host.proxy_jump is None for host in seen.values())


def test_this_machine_can_not_be_watched_from_elsewhere() -> None:
    """A `local` host has no address that another machine could be given."""
    with pytest.raises(ConfigError, match="is this machine"):
        seen_from("a", (Host(name="a", addr="10.0.0.1"), Host(name="me", addr="local")), {})


def test_what_is_lacking_comes_with_a_line_to_type() -> None:
    """Packages: a pip line for that very Python. A Python that is too old can't be helped by pip."""
    host = Host(name="a", addr="10.0.0.1")
    error = lacking(host, "/opt/py/bin/python", ("paramiko>=3.4", "rich>=13.7"))
    assert "/opt/py/bin/python -m pip install 'paramiko>=3.4' 'rich>=13.7'" in str(error.hint)
    assert "pip" not in str(lacking(host, "/usr/bin/python3", ("Python 3.11",)).hint)
