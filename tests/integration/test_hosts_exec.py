"""`hosts exec`, `drain`, `clean` on real hosts: what they do, and what they leave alone."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration import scripts
from tests.integration.cluster import Cluster, until
from tests.lab.hosts import Lab

pytestmark = pytest.mark.hosts

DIRECT = {"train": {"launcher": "direct"}}
DAY = 86400.0


@pytest.fixture
def cluster(tmp_path: Path, lab: Lab) -> Cluster:
    return Cluster(folder=tmp_path / "c", lab=lab)


def running(lab: Lab, node: str, words: str) -> list[str]:
    """Command lines on a host that contain `words`."""
    shown = lab.on_host(node, ["ps", "axo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if words in line and not line.startswith("ps ")]


def ran(cluster: Cluster, *argv: str, expect: int = 0) -> dict[str, Any]:
    """The document of `hosts exec`, by host: its options stand before `--`."""
    done = cluster.run("hosts", "exec", "-o", "json", *argv, expect=expect)
    return dict(json.loads(done.stdout)["hosts"])


# exec


def test_every_line_says_which_host_it_is_from(cluster: Cluster, lab: Lab) -> None:
    """stdout and stderr come in order, prefixed; a single word is a line for the host's shell."""
    done = cluster.run("hosts", "exec", "--", "hostname; echo oops >&2; printf 'no end'")
    assert sorted(done.stdout.splitlines()) == sorted(
        f"{name}: {text}"
        for name, node in zip("ab", lab.names, strict=True)
        for text in (node, "oops", "no end")
    )
    assert "2 hosts, exit 0" in done.stderr


def test_arguments_arrive_as_they_are(cluster: Cluster) -> None:
    """Several words are a program and its arguments: no shell on the way reads them again."""
    odd = ["a b", "$HOME", "*", "'\"", "\\", ""]
    found = ran(cluster, "--limit", "a", "--", "printf", "<%s>", *odd)
    assert found["a"]["output"] == "".join(f"<{word}>" for word in odd)


def test_exit_codes_and_signals_are_told_per_host(cluster: Cluster) -> None:
    """Exit 100 where it failed anywhere; the table says where, and how."""
    done = cluster.run("hosts", "exec", "--", 'test "$(hostname)" = node0 || exit 7', expect=100)
    assert re.search(r"(?m)^a\s+0\s", done.stderr)
    assert re.search(r"(?m)^b\s+7\s", done.stderr)
    found = ran(cluster, "--limit", "b", "--", "kill -9 $$", expect=100)["b"]
    assert (found["code"], found["signal"]) == (137, "SIGKILL")
    missing = ran(cluster, "--limit", "b", "--", "no-such-program", "x", expect=100)
    assert missing["b"]["code"] == 127


def test_time_is_up_and_nothing_of_it_is_left(cluster: Cluster, lab: Lab) -> None:
    """Exit 124; the whole family is ended on the host, those that ignore SIGTERM too."""
    stubborn = 'trap "" TERM; sleep 4242 & sleep 4243; sleep 4244'
    done = cluster.run("hosts", "exec", "--timeout", "1", "--limit", "b", "--", stubborn, expect=124)
    assert "not done after 1 s" in done.stderr
    until(lambda: not running(lab, "node1", "sleep 424"), what="the family's end")


def test_a_killed_controller_leaves_nothing_running(cluster: Cluster, lab: Lab) -> None:
    """kill -9 of llmctl itself: the hosts see that nobody waits any more, and end the command."""
    process = cluster.popen("hosts", "exec", "--", "sleep 5151; sleep 5152")
    until(lambda: running(lab, "node1", "sleep 5151"), what="the command")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert until(lambda: not any(running(lab, node, "sleep 515") for node in lab.names), what="its end")


def test_ctrl_c_comes_back_at_once_and_ends_it_on_the_hosts(cluster: Cluster, lab: Lab) -> None:
    """Exit 130 long before the command's own end, and nothing of it stays."""
    process = cluster.popen("hosts", "exec", "--", "sleep 6161")
    until(lambda: all(running(lab, node, "sleep 6161") for node in lab.names), what="the command")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "interrupted" in told
    for node in lab.names:
        until(lambda n=node: not running(lab, n, "sleep 6161"), what=f"its end on {node}")  # type: ignore[misc]


def test_an_unreachable_host_does_not_keep_the_others_from_running(cluster: Cluster, lab: Lab) -> None:
    """a's output is there; b is told with exit 11."""
    lab.poweroff("node1")
    done = cluster.run("hosts", "exec", "--", "hostname", expect=11, env={"LLMCTL_CONNECT_TIMEOUT_S": "2"})
    assert done.stdout == "a: node0\n"
    assert "b: connect:" in done.stderr


# drain


def test_a_drained_host_gets_no_new_run_and_keeps_its_old_one(cluster: Cluster) -> None:
    """train leaves it out and says so; what runs there goes on; undrain brings it back."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    before = cluster.start()
    cluster.until_state(before, "running")
    cluster.run("hosts", "drain", "b", "--reason", "GPU 3 is sick")
    assert cluster.state(before) == "running"
    plan = cluster.run("train", "--dry-run")
    assert "b is drained and left out: GPU 3 is sick" in plan.stderr
    assert "1 node x 1 rank" in plan.stdout
    told = cluster.run("train", "-j", "2x1", "--dry-run", expect=2).stderr
    assert "are not drained" in told
    assert "GPU 3 is sick" in cluster.run("hosts", "list").stdout
    assert "b is drained: GPU 3 is sick" in cluster.run("status").stderr
    assert cluster.json("hosts", "list")["pools"]["main"][1]["drained"] == "GPU 3 is sick"
    cluster.run("hosts", "undrain", "b")
    assert "2 nodes x 1 rank" in cluster.run("train", "--dry-run").stdout
    cluster.run("stop", before, "--grace", "1")


def test_other_operators_see_the_marker(cluster: Cluster) -> None:
    """Another home knows nothing, but the host says who drained it and why."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    cluster.run("hosts", "drain", "b", "--reason", "fan")
    (cluster.home / ".local/state/llmctl/hosts.json").unlink()
    told = cluster.run("hosts", "check", expect=10)
    assert re.search(r"b: check: drained by \S+@\S+: fan", told.stderr)
    assert "llmctl hosts undrain b" in told.stderr
    refused = cluster.run("train", expect=10).stderr
    assert "drained by" in refused
    assert "a" in cluster.run("train", "--limit", "!b", "--dry-run").stdout
    cluster.run("hosts", "undrain", "b")
    assert cluster.json("hosts", "check")["hosts"]["b"]["problems"] == []


def test_a_dead_host_can_be_drained(cluster: Cluster, lab: Lab) -> None:
    """That is when it is wanted most; others are told that they can't see it."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    lab.poweroff("node1")
    env = {"LLMCTL_CONNECT_TIMEOUT_S": "2"}
    done = cluster.run("hosts", "drain", "b", env=env)
    assert "others don't see it" in done.stderr
    assert "1 node x 1 rank" in cluster.run("train", "--dry-run", env=env).stdout


def test_labels_choose_hosts(cluster: Cluster) -> None:
    """`--limit key=glob` is about labels, `!` leaves out, and both are shown by `list`."""
    cluster.write_hosts(a={"labels": {"gpu": "h100", "rack": "r1"}}, b={"labels": {"gpu": "a100"}})

    def names(*limit: str) -> list[str]:
        argv = [word for glob in limit for word in ("--limit", glob)]
        return list(ran(cluster, *argv, "--", "true"))

    assert names("gpu=h*") == ["a"]
    assert names("gpu=*100", "!rack=r1") == ["b"]
    assert names("!a") == ["b"]
    cluster.run("hosts", "exec", "--limit", "gpu=b*", "--", "true", expect=2)
    assert "gpu=h100 rack=r1" in cluster.run("hosts", "list").stdout


# clean


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then), follow_symlinks=False)


def test_clean_removes_what_is_old_and_never_what_a_live_run_needs(cluster: Cluster) -> None:
    """Old trees and agents go, bytes are counted; the live run's tree, agent and directory stay."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    run = cluster.start()
    cluster.until_state(run, "running")
    work = cluster.workdir("a")
    (used,) = [p for p in (work / "code").iterdir() if not p.name.startswith(".")]
    old = work / "code" / ("0" * 64)
    old.mkdir()
    (old / "blob").write_bytes(os.urandom(1 << 20))
    stale = work / "agent" / ("f" * 64 + ".pyz")
    stale.write_bytes(b"x")
    for path in (old, stale, used, *(work / "agent").iterdir(), work / "runs" / run):
        age(path, 30)
    dry = cluster.json("hosts", "clean", "--dry-run", "--limit", "a")["hosts"]["a"]
    assert old.exists()
    done = cluster.json("hosts", "clean", "--limit", "a")["hosts"]["a"]
    assert [item["name"] for item in dry["items"]] == [item["name"] for item in done["items"]]
    assert {item["name"] for item in done["items"]} >= {old.name, stale.name}
    assert (1 << 20) <= done["bytes"] < (8 << 20)
    assert done["live"] == [run]
    assert not old.exists()
    assert not stale.exists()
    assert used.exists()
    assert cluster.state(run) == "running"
    cluster.run("hosts", "clean", "--older-than", "0s", "--runs", "--limit", "a")
    assert cluster.state(run) == "running"
    cluster.run("stop", run, "--grace", "1")


def test_ended_runs_go_only_when_asked(cluster: Cluster) -> None:
    """Their logs and checkpoints may be the only copy: --runs, and old enough."""
    cluster.write_script("print('hello')\n")
    cluster.run("train", "--no-pull")
    (run,) = [p for p in (cluster.workdir("a") / "runs").iterdir() if p.name.startswith("t-")]
    assert "nothing to remove" in cluster.run("hosts", "clean", "--runs").stdout
    for path in (run, *run.iterdir()):
        age(path, 30)
    assert "1 run" not in cluster.run("hosts", "clean", "--limit", "a").stdout
    assert run.exists()
    assert "1 run" in cluster.run("hosts", "clean", "--runs", "--limit", "a").stdout
    assert not run.exists()
    assert cluster.run("hosts", "clean", "--older-than", "soon", expect=2).stderr


def test_the_next_train_works_after_a_clean_sweep(cluster: Cluster) -> None:
    """Whatever was removed is pushed again."""
    cluster.write_script("print('hello')\n")
    cluster.run("train", "--no-pull")
    for path in (cluster.workdir("b") / "code").iterdir():
        age(path, 30)
    swept = json.loads(cluster.run("hosts", "clean", "--older-than", "1h", "--runs", "-o", "json").stdout)
    assert swept["hosts"]["b"]["failed"] == []
    assert "succeeded" in cluster.run("train", "--no-pull").stdout
