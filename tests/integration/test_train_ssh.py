"""The main job on real SSH hosts, and the faults that real hosts have."""

from __future__ import annotations

import json
import os
import re
import signal
import sysconfig
from contextlib import ExitStack
from pathlib import Path

import pytest

from llmctl.storage.corpus.shard import shard
from tests.integration import scripts
from tests.integration.cluster import Cluster, until
from tests.lab.hosts import Lab
from tests.lab.state import mounted, rewritten

pytestmark = pytest.mark.hosts

DIRECT = {"train": {"launcher": "direct"}}
SHARDS = "/srv/shards"


@pytest.fixture
def cluster(tmp_path: Path, lab: Lab) -> Cluster:
    return Cluster(folder=tmp_path / "c", lab=lab)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> str:
    """Real text (the standard library's json and email packages) as shards on every host."""
    made = tmp_path_factory.mktemp("corpus") / "shards"
    root = Path(sysconfig.get_path("stdlib"))
    shard([str(root / "json"), str(root / "email")], str(made))
    Cluster(folder=tmp_path_factory.mktemp("copy"), lab=lab).copy_to_hosts(made, SHARDS)
    return SHARDS


def recipe(**changes: object) -> dict[str, object]:
    model = {"size": "tiny", "layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn_dim": 64}
    small = {"model": model, "steps": 12, "global_batch": 4, "micro_batch": 2, "sequence_length": 32}
    return {**small, "precision": "fp32", "tensorboard": False, **changes}


@pytest.mark.torch
def test_the_recipe_trains_over_two_hosts_and_everything_comes_home(cluster: Cluster, corpus: str) -> None:
    """Loss falls on real text; logs, metrics and a verified checkpoint are pulled; nothing is left behind."""
    cluster.write_job(data={"uri": corpus}, recipe=recipe(), checkpoint={"every": 5, "keep": 2})
    done = cluster.run("train")
    assert re.search(r"succeeded at step 12/12 .* checkpoint 12", done.stdout), done.stdout
    (pulled,) = (cluster.folder / "llmctl-runs").glob("t-*")
    metrics = [json.loads(line) for line in (pulled / "a/attempt-1/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in metrics if line["kind"] == "step"]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert (pulled / "checkpoints/step-00000012/COMMIT.json").exists()
    kept = sorted(p.name for p in (cluster.run_dir("a", pulled.name) / "checkpoints").iterdir())
    assert kept == ["step-00000010", "step-00000012"]
    row = cluster.json("status")["runs"][0]
    assert (row["state"], row["step"], row["nodes"]) == ("succeeded", 12, "2/2")
    assert not cluster.processes(pulled.name)
    again = cluster.json("pull", pulled.name)
    assert again["checkpoints"] == ["step-00000012"]
    assert again["bytes"] < 50_000, "a checkpoint that is here was fetched again"


@pytest.mark.torch
@pytest.mark.parametrize("name", ["127.0.1.1 {host}", "# {host} does not resolve"])
def test_an_unmodified_script_runs_whatever_the_hosts_call_themselves(
    cluster: Cluster, lab: Lab, name: str
) -> None:
    """Debian's 127.0.1.1 line, or no line at all, must not hang the rendezvous."""
    cluster.write_script(scripts.DDP)
    with ExitStack() as names:
        for host in lab.names:
            lines = "127.0.0.1 localhost\n" + name.format(host=host) + "\n"
            names.enter_context(rewritten(lab, host, "/etc/hosts", lines))
        done = cluster.run("train", "--", "--steps", "2")
    assert "succeeded" in done.stdout
    assert "a:0 step 1 rank 0/2" in done.stderr
    assert "b:1 step 1 rank 1/2" in done.stderr


@pytest.mark.torch
def test_a_rank_that_raises_in_the_middle_is_found_first(cluster: Cluster) -> None:
    """The peers' lost connections come later: the verdict names the rank that began it."""
    cluster.write_script(scripts.DDP)
    done = cluster.run("train", "--", "--steps", "50", "--fail-rank", "1", expect=100)
    first = next(line for line in done.stdout.splitlines() if line.startswith("first failure"))
    assert "rank 1 (b)  exit 1" in first
    assert "RuntimeError: rank 1 has had enough" in done.stdout


def test_a_worker_that_is_killed_is_named_with_its_signal(cluster: Cluster) -> None:
    """kill -9 of a rank: SIGKILL is told as such, not as an exit code."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    run = cluster.start()
    cluster.until_state(run, "running")
    pid = _rank_pid(cluster, "b", run)
    os.kill(pid, signal.SIGKILL)
    cluster.run("wait", run, expect=100, timeout=90)
    assert "rank 1 (b)  SIGKILL" in cluster.run("status", run).stdout
    until(lambda: not cluster.processes(run), what="all gone")


def test_killing_an_agent_leaves_nothing_on_its_host(cluster: Cluster) -> None:
    """kill -9 of the agent: its ranks end with it, and the state says what happened."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    run = cluster.start()
    cluster.until_state(run, "running")
    os.kill(cluster.agent_pid("b", run), signal.SIGKILL)
    cluster.until_state(run, "failed")
    assert "agent died" in cluster.run("status", run).stdout
    cluster.run("stop", run, "--grace", "1")
    assert not cluster.processes(run)


def test_lost_contact_is_not_failure_and_logs_have_no_gap(cluster: Cluster, lab: Lab) -> None:
    """The network to one host is cut while its log streams: the job goes on, the stream goes on later."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    run = cluster.start()
    cluster.until_state(run, "running")
    with (cluster.folder / "stream").open("w") as out:
        follower = cluster.popen("logs", run, "-f", "--rank", "1", stdout=out)
        stream = cluster.folder / "stream"
        until(lambda: "tick 5 " in stream.read_text(), what="first lines")
        lab.partition("node1", between="ctl")
        assert cluster.until_state(run, "lost-contact") == "lost-contact"
        shown = cluster.json("status", run)["run"]
        assert [node["state"] for node in shown["nodes"]] == ["running", None]
        lab.heal("node1")
        cluster.until_state(run, "running")
        before = stream.read_text().count("\n")
        until(lambda: stream.read_text().count("\n") > before + 20, what="the stream going on")
        cluster.run("stop", run, "--grace", "1")
        follower.communicate(timeout=30)
    ticks = [int(n) for n in re.findall(r"b:1 tick (\d+) of 1", stream.read_text())]
    assert ticks == list(range(len(ticks))), "a line is missing or was printed twice"


def test_an_unreachable_host_does_not_delay_the_other(cluster: Cluster, lab: Lab) -> None:
    """A dead host costs its own timeout only, and `status` still shows what the other says."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    run = cluster.start()
    cluster.until_state(run, "running")
    lab.poweroff("node1")
    env = {"LLMCTL_CONNECT_TIMEOUT_S": "2"}
    done = cluster.run("status", run, "-o", "json", env=env, timeout=30)
    shown = json.loads(done.stdout)["run"]
    assert shown["state"] == "lost-contact"
    assert shown["nodes"][0]["state"] == "running"
    assert shown["nodes"][1]["error"]
    stopped = cluster.run("stop", run, "--grace", "1", expect=11, env=env)
    assert "a  " in stopped.stdout


def test_unknown_and_changed_host_keys_are_refused(cluster: Cluster, lab: Lab) -> None:
    """Exit 12 with the fingerprint and the way on; `hosts trust --fingerprint` is that way for CI."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    known = lab.known_hosts.read_text()
    try:
        lab.known_hosts.write_text("".join(k for k in known.splitlines(True) if not k.startswith("node1")))
        told = cluster.run("train", expect=12).stderr
        assert "llmctl hosts trust b" in told
        fingerprint = re.search(r"SHA256:[A-Za-z0-9+/]{43}", told)
        assert fingerprint, told
        cluster.run("hosts", "trust", "b", "--fingerprint", "SHA256:" + "A" * 43, expect=12)
        cluster.run("hosts", "trust", "b", "--fingerprint", fingerprint.group())
        assert cluster.json("hosts", "check")["hosts"]["b"]["problems"] == []
        lab.kill("node1")
        lab.start("node1", new_key=True, trust=False)
        changed = cluster.run("train", expect=12).stderr
        assert "changed" in changed
        assert "llmctl hosts trust b --replace" in changed
    finally:
        lab._write_client_files()


def test_a_refused_port_is_one_line(cluster: Cluster) -> None:
    """Exit 11, the host, the address, and something to do; nothing was started on the other."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    cluster.write_hosts(b={"port": 2222})
    told = cluster.run("train", expect=11).stderr
    assert "b: connect:" in told
    assert "refused" in told
    cluster.write_hosts()
    assert cluster.json("status", "--all")["runs"] == []


def test_a_host_without_python_is_named(cluster: Cluster) -> None:
    """Exit 10 with what the shell said and the key to set."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    cluster.write_hosts(b={"python": "/opt/none/python"})
    told = cluster.run("train", expect=10).stderr
    assert "b: check: python does not start" in told
    assert "`python:` for b in hosts.yaml" in told


def test_a_full_disk_is_told_before_anything_starts(cluster: Cluster, lab: Lab) -> None:
    """Exit 10: how much is free, how much is needed."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    with mounted(lab, "node1", "/srv/small", "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        cluster.write_hosts(b={"workdir": "/srv/small/w"})
        told = cluster.run("train", expect=10).stderr
        assert re.search(r"b: check: only \d MB free in /srv/small/w", told), told


def test_a_push_that_fills_the_disk_shows_nothing_half_written(cluster: Cluster, lab: Lab) -> None:
    """No space in the middle of a push: the real reason, no tree, no run."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    (cluster.folder / "code/blob").write_bytes(os.urandom(120 << 20))
    with mounted(lab, "node1", "/srv/small", "-t", "tmpfs", "-o", "size=100m", "tmpfs"):
        cluster.write_hosts(b={"workdir": "/srv/small/w"})
        told = cluster.run("train", expect=21).stderr
        assert "b: push:" in told
        assert "No space left on device" in told
        code = lab.path("node1", "/srv/small/w/code")
        assert [p.name for p in code.iterdir() if not p.name.startswith(".")] == []
        assert cluster.json("status", "--all")["runs"] == []


def test_an_ordinary_user_is_enough(cluster: Cluster, lab: Lab) -> None:
    """No root on the hosts: start, status and a proven stop work as user `trainer`."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    cluster.write_hosts(a={"user": "trainer"}, b={"user": "trainer"})
    for host in lab.names:  # the interpreter of the tests may lie below root's home
        lab.on_host(host, ["chmod", "711", "/root"], check=True)
    run = cluster.start()
    cluster.until_state(run, "running")
    report = cluster.json("stop", run, "--grace", "1")
    assert all(host["left"] == [] and host["ended"] for host in report["hosts"].values())
    assert not cluster.processes(run)


def test_stopping_one_run_leaves_the_other_alone(cluster: Cluster) -> None:
    """Two runs side by side on the same hosts."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    first, second = cluster.start(), cluster.start("--share")
    for run in (first, second):
        cluster.until_state(run, "running")
    cluster.run("stop", first, "--grace", "1")
    assert cluster.state(second) == "running"
    assert not cluster.processes(first)
    cluster.run("stop", second, "--grace", "1")


def _rank_pid(cluster: Cluster, host: str, run: str) -> int:
    """The pid of the rank itself (not of its shim), as this machine counts."""

    def find() -> int | None:
        for pid in cluster.processes(run):
            try:
                argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                root = Path(f"/proc/{pid}/root").stat()
            except OSError:
                continue
            mine = (
                cluster.lab and root == Path(f"/proc/{cluster.lab.pid(cluster.lab_name(host))}/root").stat()
            )
            if mine and b"train.py" in argv and b"rank" not in argv:
                return pid
        return None

    return int(until(find, what="the rank's process"))
