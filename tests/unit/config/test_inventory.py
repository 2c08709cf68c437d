"""Inventories: found in the promised order, merged, and refused where one name means two things."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.controller.config.inventory import find_inventory, load_inventory, select_hosts
from llmctl.errors import ConfigError

TWO = """
version: 1
defaults: {user: ubuntu, slots: 8, python: /opt/venv/bin/python}
pools:
  main:
    hosts:
      - {name: a, addr: 10.0.0.1}
      - {name: b, addr: 10.0.0.2, slots: 4, proxy_jump: bastion, user: root}
  small:
    hosts:
      - {name: a, addr: 10.0.0.1}
      - {name: c, addr: local}
"""


@pytest.fixture
def inventory_file(tmp_path: Path) -> Path:
    (tmp_path / "hosts.yaml").write_text(TWO)
    return tmp_path / "hosts.yaml"


def pool(*hosts: str, more: str = "") -> str:
    return "version: 1\npools:\n  p:\n    hosts:\n" + "".join(f"      - {h}\n" for h in hosts) + more


def test_defaults_fill_in_and_entries_win(inventory_file: Path) -> None:
    """A host has the file's defaults except where it says otherwise."""
    a, b = load_inventory(inventory_file).pools["main"]
    assert (a.user, a.slots, a.port, a.python, a.workdir) == (
        "ubuntu",
        8,
        None,
        "/opt/venv/bin/python",
        "~/.llmctl",
    )
    assert (b.user, b.slots, b.proxy_jump) == ("root", 4, "bastion")


def test_one_host_may_be_in_two_pools(inventory_file: Path) -> None:
    """A host that is the same in two pools is one host."""
    assert [host.name for host in load_inventory(inventory_file).all_hosts()] == ["a", "b", "c"]


def test_local_hosts_lie_beside_the_file(tmp_path: Path) -> None:
    """A relative workdir of a local host means the same from whatever folder llmctl is called."""
    (tmp_path / "hosts.yaml").write_text(pool("{name: a, addr: local, workdir: hosts/a}"))
    (host,) = load_inventory(tmp_path / "hosts.yaml").all_hosts()
    assert host.workdir == str(tmp_path / "hosts/a")
    assert host.is_local


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (pool("{name: a, addr: x}", "{name: a, addr: y}"), "hosts.yaml:6: host `a` is twice in pool `p`"),
        (pool("{name: a, addr: x}", more="  q: {hosts: [{name: a, addr: y}]}"), "has other settings here"),
        (pool("{name: a, addr: x}", "{name: b, addr: x}"), "`a` and `b` are the same machine \\(x\\)"),
        (pool("{name: a, addr: local}", "{name: b, addr: local}"), "same machine \\(this machine\\)"),
        (pool("{name: a, addr: u@x}"), "must be an address or alias, without user, port"),
        (pool("{name: a, addr: x, workdir: rel}"), "hosts.yaml:5: `workdir` of a must start with"),
        (pool(), "must be a list, found nothing"),
        ("version: 1\npools: {}", "`pools` must have at least 1 entry, found 0"),
    ],
)
def test_what_would_mix_up_two_machines_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    """One name is one machine and one machine one name, or results would overwrite each other."""
    (tmp_path / "hosts.yaml").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_inventory(tmp_path / "hosts.yaml")


def test_two_ports_or_workdirs_are_two_hosts(tmp_path: Path) -> None:
    """The same address is fine where port or workdir keep the two apart."""
    hosts = ("{name: a, addr: x, port: 1}", "{name: b, addr: x, port: 2}", "{name: c, addr: x, workdir: ~/c}")
    (tmp_path / "hosts.yaml").write_text(pool(*hosts))
    assert len(load_inventory(tmp_path / "hosts.yaml").all_hosts()) == 3


def test_select_takes_the_first_that_match(inventory_file: Path) -> None:
    """`nodes` counts from the pool's first host, after the globs."""
    inventory = load_inventory(inventory_file)
    assert [h.name for h in select_hosts(inventory, pool="main", nodes=1)] == ["a"]
    assert [h.name for h in select_hosts(inventory, pool="main", limit=["b*"])] == ["b"]
    assert [h.name for h in select_hosts(inventory, pool="main", limit=["b", "a"])] == ["a", "b"]


def test_select_errors_name_what_there_is(inventory_file: Path) -> None:
    """A wrong pool, glob or count is answered with the pools, hosts or number that exist."""
    inventory = load_inventory(inventory_file)
    with pytest.raises(ConfigError, match="has several pools: main, small"):
        select_hosts(inventory)
    with pytest.raises(ConfigError, match=r"no pool `mian` .*did you mean `main`"):
        select_hosts(inventory, pool="mian")
    with pytest.raises(ConfigError, match="3 nodes asked, but pool `main` has 2 hosts: a, b"):
        select_hosts(inventory, pool="main", nodes=3)
    with pytest.raises(ConfigError, match=r"--limit x\* matches no host") as caught:
        select_hosts(inventory, pool="main", limit=["a", "x*"])
    assert caught.value.hint == "hosts there: a, b"


def test_the_file_is_found_in_the_promised_order(tmp_path: Path) -> None:
    """Flag, then LLMCTL_HOSTS, then ./hosts.yaml, then the user's file; none is an error with a way out."""
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    user = home / ".config/llmctl/hosts.yaml"
    env = {"HOME": str(home)}
    user.parent.mkdir(parents=True)
    cwd.mkdir()
    with pytest.raises(ConfigError, match="no hosts file found") as caught:
        find_inventory(None, env, cwd)
    assert "llmctl init" in str(caught.value.hint)
    user.touch()
    assert find_inventory(None, env, cwd) == user
    (cwd / "hosts.yaml").touch()
    assert find_inventory(None, env, cwd) == cwd / "hosts.yaml"
    (tmp_path / "env.yaml").touch()
    env["LLMCTL_HOSTS"] = str(tmp_path / "env.yaml")
    assert find_inventory(None, env, cwd) == tmp_path / "env.yaml"
    (cwd / "flag.yaml").touch()
    assert find_inventory("flag.yaml", env, cwd) == cwd / "flag.yaml"


def test_a_named_file_that_is_missing_is_not_replaced(tmp_path: Path) -> None:
    """A file that was asked for and is not there is an error, never silently another file."""
    (tmp_path / "hosts.yaml").touch()
    with pytest.raises(ConfigError, match=r"other.yaml \(from LLMCTL_HOSTS\) does not exist"):
        find_inventory(None, {"LLMCTL_HOSTS": "other.yaml"}, tmp_path)


def test_a_pipe_is_a_hosts_file(tmp_path: Path) -> None:
    """`--hosts <(...)` and /dev/stdin are read; a folder is called one."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe:
        pipe.write(TWO)
    try:
        path = find_inventory(f"/dev/fd/{reader}", {}, tmp_path)
        assert len(load_inventory(path).all_hosts()) == 3
    finally:
        os.close(reader)
    with pytest.raises(ConfigError, match="is a folder"):
        find_inventory(str(tmp_path), {}, tmp_path)


def test_a_home_of_nobody_is_told(tmp_path: Path) -> None:
    """`--hosts ~nouser/h` is the user's mistake, not a crash."""
    with pytest.raises(ConfigError, match="no home folder is known for ~no-such-user"):
        find_inventory("~no-such-user/h", {}, tmp_path)


def test_pools_are_named_once(inventory_file: Path) -> None:
    """A pool that is near to none is answered with the pools, in the message or the hint but not both."""
    with pytest.raises(ConfigError, match="known: main, small") as caught:
        select_hosts(load_inventory(inventory_file), pool="zzz")
    assert caught.value.hint is None


LABELLED = """
version: 1
defaults: {labels: {site: fra, gpu: none}}
pools:
  main:
    hosts:
      - {name: a, addr: x, labels: {gpu: h100}}
      - {name: b, addr: y}
      - {name: c1, addr: z, labels: {gpu: a100}}
"""


@pytest.mark.parametrize(
    ("limit", "names"),
    [
        (["gpu=h100"], "a"),
        (["gpu=*100"], "a c1"),
        (["site=fra"], "a b c1"),
        (["c*", "gpu=none"], "b c1"),
        (["!gpu=none"], "a c1"),
        (["gpu=*100", "!c*"], "a"),
    ],
)
def test_limit_chooses_by_name_label_and_exception(tmp_path: Path, limit: list[str], names: str) -> None:
    """Several globs add up, `!` takes away, and a host's own label wins over the default."""
    (tmp_path / "hosts.yaml").write_text(LABELLED)
    chosen = select_hosts(load_inventory(tmp_path / "hosts.yaml"), limit=limit)
    assert " ".join(host.name for host in chosen) == names


@pytest.mark.parametrize("limit", [["gpu=b*"], ["rack=r1"], ["!nobody"], ["a", "!gpu=h100"]])
def test_a_limit_that_matches_nothing_is_refused(tmp_path: Path, limit: list[str]) -> None:
    """A typo must not mean all hosts, nor none."""
    (tmp_path / "hosts.yaml").write_text(LABELLED)
    with pytest.raises(ConfigError, match="--limit"):
        select_hosts(load_inventory(tmp_path / "hosts.yaml"), limit=limit)


def test_drained_hosts_are_left_out_where_asked(tmp_path: Path) -> None:
    """A run takes the others; a check asks all; and a pool that is wholly drained says so."""
    (tmp_path / "hosts.yaml").write_text(LABELLED)
    inventory = replace(load_inventory(tmp_path / "hosts.yaml"), drained={"b": "fan"})
    assert [h.name for h in select_hosts(inventory, skip_drained=True)] == ["a", "c1"]
    assert [h.name for h in select_hosts(inventory)] == ["a", "b", "c1"]
    with pytest.raises(ConfigError, match=r"3 nodes asked, but .* are not drained: a, c1"):
        select_hosts(inventory, nodes=3, skip_drained=True)
    with pytest.raises(ConfigError, match="is drained: b"):
        select_hosts(inventory, limit=["b"], skip_drained=True)


def test_a_label_is_plain_text(tmp_path: Path) -> None:
    """`nodes: 8` is a number in YAML and would never match a glob: it is refused by name."""
    (tmp_path / "hosts.yaml").write_text(pool("{name: a, addr: x, labels: {cards: 8}}"))
    with pytest.raises(ConfigError, match="labels"):
        load_inventory(tmp_path / "hosts.yaml")
