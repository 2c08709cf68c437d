"""Hostfiles and ssh configurations become a hosts.yaml that loads back."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.controller.config.checking import check_document
from llmctl.controller.config.fields import ADDR, HOST_NAME
from llmctl.controller.config.imports import import_file, import_hostfile, import_ssh_config, render_hosts
from llmctl.controller.config.models import HostEntry, HostsFile
from llmctl.controller.config.yamlfile import parse_yaml
from llmctl.errors import ConfigError


def load_back(text: str) -> list[HostEntry]:
    return check_document(HostsFile, parse_yaml(text, "hosts.yaml"), "the inventory").pools["main"].hosts


def test_a_hostfile_of_all_forms() -> None:
    """MPI, DeepSpeed and user@host:port lines are read in order, comments and blank lines aside."""
    entries = import_hostfile(
        "# cluster\nhostA slots=8\n\n10.0.0.2 slots=4 max_slots=8 # old\nroot@hostC:2222\n[fe80::1]\nhostA\n"
    )
    assert [(e.name, e.addr, e.user, e.port, e.slots) for e in entries] == [
        ("hostA", "hostA", None, None, 9),
        ("10.0.0.2", "10.0.0.2", None, None, 4),
        ("hostC", "hostC", "root", 2222, None),
        ("fe80--1", "fe80::1", None, None, None),
    ]
    assert load_back(render_hosts(entries, origin="hostfile")) == list(entries)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hostA:4", "hostfile:1: `hostA:4`: is 4 a port or a number of processes"),
        ("hostA gpus=4", "hostfile:1: 'gpus=4' is not slots=NUMBER"),
        ("hostA slots=0", "is not slots=NUMBER"),
        ("root@a:70000", "70000 is not a port"),
        ("# nothing", "hostfile names no host"),
        ("a\nroot@a", "hostfile:2: a is here again with another user or port"),
    ],
)
def test_a_hostfile_line_that_is_unclear_is_refused(line: str, expected: str) -> None:
    """Nothing is guessed: a line of another form is named with its number."""
    with pytest.raises(ConfigError, match=expected):
        import_hostfile(line)


def test_ssh_config_names_with_includes(tmp_path: Path) -> None:
    """Plain `Host` names are found through nested Includes; wildcards, negations and Match are not hosts."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "config").write_text(
        'Include conf.d/*.conf\nInclude nowhere\nHost a b\n  HostName 10.0.0.1\nhost="c"\n'
        "Host * !d web-?\n  User x\nMatch host e\n  User y\n# Host f\n"
    )
    (tmp_path / "conf.d/1.conf").write_text("Host g a\n Include conf.d/deep\n")
    (tmp_path / "conf.d/deep").write_text("Host h # the last\n")
    entries = import_ssh_config(tmp_path / "config")
    assert [entry.name for entry in entries] == ["g", "a", "h", "b", "c"]
    assert all(entry.addr == entry.name for entry in entries)
    assert load_back(render_hosts(entries)) == list(entries)


def test_ssh_config_that_includes_itself(tmp_path: Path) -> None:
    """A loop of Includes ends with an error."""
    (tmp_path / "config").write_text("Include config\n")
    with pytest.raises(ConfigError, match="nests deeper"):
        import_ssh_config(tmp_path / "config")


def test_either_kind_of_file_is_recognised(tmp_path: Path) -> None:
    """A hostfile whose host is called `host1` is still a hostfile; a lower-case `host x` is an ssh config."""
    (tmp_path / "hostfile").write_text("host1 slots=2\n")
    (tmp_path / "config").write_text("# mine\nhost x\n  user y\n")
    assert import_file(tmp_path / "hostfile")[0].slots == 2
    assert import_file(tmp_path / "config") == (HostEntry(name="x", addr="x"),)
    with pytest.raises(ConfigError, match="can't be read"):
        import_file(tmp_path / "nowhere")


def test_no_ssh_config(tmp_path: Path) -> None:
    """A missing file and one without plain names are errors of the user, with the path."""
    with pytest.raises(ConfigError, match="does not exist"):
        import_ssh_config(tmp_path / "config")
    (tmp_path / "config").write_text("Host *\n")
    with pytest.raises(ConfigError, match="no `Host` line with a plain name"):
        import_ssh_config(tmp_path / "config")


@given(
    name=st.from_regex(HOST_NAME, fullmatch=True).map(str.strip),
    addr=st.text(min_size=1, max_size=30).filter(
        lambda text: text.isprintable() and re.fullmatch(ADDR, text)
    ),
    user=st.none() | st.from_regex(r"[a-z0-9._-]{1,12}", fullmatch=True),
    port=st.none() | st.integers(1, 65535),
)
def test_whatever_is_rendered_loads_back(name: str, addr: str, user: str | None, port: int | None) -> None:
    """Names such as `1e3`, `null` or `0x1F` and addresses with YAML's signs survive the file."""
    entry = HostEntry(name=name, addr=addr, user=user, port=port)
    assert load_back(render_hosts([entry])) == [entry]


def test_an_ssh_config_from_a_pipe(tmp_path: Path) -> None:
    """A pipe has its text only once, and that is enough."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe:
        pipe.write("Host a b\n")
    try:
        assert [entry.name for entry in import_file(f"/dev/fd/{reader}")] == ["a", "b"]
    finally:
        os.close(reader)


def test_what_could_not_be_loaded_is_not_rendered() -> None:
    """A pool's name that hosts.yaml would refuse is refused when it is asked for."""
    with pytest.raises(ConfigError, match="--pool must be lower-case letters"):
        render_hosts([HostEntry(name="a", addr="a")], pool="A B")


def test_a_home_of_nobody_is_told() -> None:
    """`hosts import ~nouser/x` is the user's mistake, not a crash."""
    with pytest.raises(ConfigError, match="no home folder is known for ~no-such-user"):
        import_file("~no-such-user/x")
