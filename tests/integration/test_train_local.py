"""The main job on two local hosts: everything but SSH itself, on any machine, without root."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.integration import scripts
from tests.integration.cluster import Cluster, until


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(folder=tmp_path / "c")


DIRECT = {"train": {"launcher": "direct"}}


@pytest.mark.torch
def test_an_unmodified_torchrun_script_runs_over_two_hosts(cluster: Cluster) -> None:
    """A script that knows only torchrun trains on 2 ranks, gets its arguments, may write into its cwd."""
    cluster.write_script(scripts.DDP)
    done = cluster.run("train", "--", "--steps", "4")
    assert "succeeded" in done.stdout
    (pulled,) = (cluster.folder / "llmctl-runs").glob("t-*")
    log = (pulled / "a/attempt-1/rank-0.log").read_text()
    assert "step 3 rank 0/2" in log
    assert "step 3 rank 1/2" in (pulled / "b/attempt-1/rank-1.log").read_text()
    assert (cluster.run_dir("a", pulled.name) / "code/model.pt").exists()
    assert not list(cluster.workdir("a").glob("code/*/model.pt")), "the shared tree was written into"
    assert not cluster.processes(pulled.name)


@pytest.mark.torch
def test_checkpoints_in_a_shared_folder_are_written_once_and_pulled_on_request(cluster: Cluster) -> None:
    """`checkpoint.uri` names a folder that both hosts see: one copy there, none in the run directories."""
    text = cluster.folder / "text"
    text.mkdir()
    (text / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    cluster.run("data", "shard", "text", "shards", "--workers", "1")
    model = {"size": "tiny", "layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn_dim": 64}
    small = {"model": model, "steps": 4, "global_batch": 4, "micro_batch": 2, "sequence_length": 32}
    cluster.write_job(data={"uri": "shards"}, recipe=small, checkpoint={"uri": "kept", "every": 2, "keep": 1})
    cluster.run("train")
    assert [path.name for path in (cluster.folder / "kept").glob("step-*")] == ["step-00000004"]
    (pulled,) = (cluster.folder / "llmctl-runs").glob("t-*")
    assert not (cluster.run_dir("a", pulled.name) / "checkpoints").exists()
    assert not (pulled / "checkpoints").exists()
    assert cluster.json("pull")["checkpoints"] == ["step-00000004"]
    assert (pulled / "checkpoints/step-00000004/COMMIT.json").exists()


def test_detach_status_logs_stop(cluster: Cluster) -> None:
    """`-d` prints the id alone; another shell sees the run, its lines, and ends it without a trace."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    run = cluster.start()
    cluster.until_state(run, "running")
    until(lambda: "b:1 tick 3 of 1" in cluster.run("logs", run, "--grep", "tick 3").stdout, what="logs")
    rows = cluster.json("status")["runs"]
    assert [(row["run_id"], row["state"], row["hosts"]) for row in rows] == [(run, "running", ["a", "b"])]
    report = cluster.json("stop", run, "--grace", "2")
    assert all(host["left"] == [] for host in report["hosts"].values())
    assert cluster.state(run) == "cancelled"
    assert not cluster.processes(run)
    assert cluster.run("wait", run, expect=103).stdout.startswith(f"{run} was stopped")


def test_status_from_an_empty_home_finds_the_run_on_its_hosts(cluster: Cluster, tmp_path: Path) -> None:
    """Another machine has the hosts file and nothing else; it sees, follows and stops the run."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    run = cluster.start()
    other = {"HOME": str(tmp_path / "other")}
    listed = cluster.run("status", "-o", "json", env=other)
    assert json.loads(listed.stdout)["runs"][0]["run_id"] == run
    assert "tick" in cluster.run("logs", "t", "-n", "2", env=other).stdout
    cluster.run("stop", run, "--grace", "2", env=other)
    assert not cluster.processes(run)


def test_a_controller_that_is_killed_costs_nothing(cluster: Cluster) -> None:
    """kill -9 of the `train` command: the job goes on, and the ledger still leads to it."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    controller = cluster.popen("train")
    rows = until(
        lambda: [r for r in cluster.json("status")["runs"] if r["state"] == "running"], what="running"
    )
    os.kill(controller.pid, signal.SIGKILL)
    controller.communicate()
    run = rows[0]["run_id"]
    assert cluster.state(run) == "running"
    before = cluster.run("logs", run, "--rank", "0", "-n", "1").stdout
    until(lambda: cluster.run("logs", run, "--rank", "0", "-n", "1").stdout != before, what="new lines")
    cluster.run("stop", run, "--grace", "2")


def test_ctrl_c_detaches(cluster: Cluster) -> None:
    """Ctrl-C ends the command with 130 and says how to come back; the job goes on."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    controller = cluster.popen("train")
    until(lambda: [r for r in cluster.json("status")["runs"] if r["state"] == "running"], what="running")
    controller.send_signal(signal.SIGINT)
    _, told = controller.communicate(timeout=30)
    assert controller.returncode == 130
    run = cluster.json("status")["runs"][0]["run_id"]
    assert f"llmctl attach {run}" in told
    assert cluster.state(run) == "running"
    cluster.run("stop", run, "--grace", "2")


def test_a_rank_that_fails_ends_the_run_with_its_words(cluster: Cluster) -> None:
    """The other host is not left waiting; the verdict names rank, host, code and last words."""
    cluster.write_script(scripts.ONE_FAILS, **DIRECT)
    done = cluster.run("train", expect=100)
    assert "rank 1 (b)  exit 1" in done.stdout
    assert "ValueError: bad sample 17" in done.stdout
    run = cluster.json("status")["runs"][0]
    assert (run["state"], run["note"]) == ("failed", "rank 1: exit 1 on b")
    assert not cluster.processes(run["run_id"])


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"chekpoint": {}}, "job.yaml:1: unknown key `chekpoint` in the job; did you mean `checkpoint`?"),
        ({"nodes": "two"}, "`nodes` must be a whole number"),
        ({"train": {"script": "trian.py"}, "code": {"path": "code"}}, "trian.py does not exist"),
    ],
)
def test_mistakes_in_the_job_are_told_before_anything_runs(
    cluster: Cluster, keys: dict[str, object], says: str
) -> None:
    """One line with file, line, key and the nearest right one; exit 2."""
    (cluster.folder / "code").mkdir()
    (cluster.folder / "code/train.py").write_text("")
    cluster.write_job(**keys)
    told = cluster.run("train", expect=2).stderr
    assert says.split(": ", 1)[-1] in told
    assert "job.yaml" in told or "code" in told


def test_a_host_without_torch_is_named(cluster: Cluster) -> None:
    """The interpreter, its version and the key to set; exit 10, nothing started."""
    cluster.write_script(scripts.SLEEPER)
    cluster.write_hosts(b={"python": "/usr/bin/python3"})
    told = cluster.run("train", expect=10).stderr
    assert "b: check: python has no torch (/usr/bin/python3" in told
    assert cluster.json("status", "--all")["runs"] == []


def test_secrets_reach_the_ranks_and_nothing_else(cluster: Cluster) -> None:
    """The value is in the rank's environment; no file of the run or of the operator holds it."""
    cluster.write_script(
        "import os, hashlib; t = os.environ['HF_TOKEN']; print(hashlib.sha256(t.encode()).hexdigest())",
        env={"secrets": ["HF_TOKEN"]},
        **DIRECT,
    )
    secret = "hf_abcdefgh12345678"  # noqa: S105 - looked for in every file
    done = cluster.run("train", env={"HF_TOKEN": secret})
    assert secret not in done.stdout + done.stderr
    files = [path for path in cluster.folder.rglob("*") if path.is_file()]
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    logs = cluster.run("logs").stdout
    assert hashlib.sha256(secret.encode()).hexdigest() in logs


def test_a_secret_that_the_job_prints_is_masked_in_the_display(cluster: Cluster) -> None:
    """The job's own log is the job's affair; what `train` shows, the last words of a failure too, is ours."""
    text = "import os, sys; print('token', os.environ['HF_TOKEN']); sys.exit('bad ' + os.environ['HF_TOKEN'])"
    cluster.write_script(text, env={"secrets": ["HF_TOKEN"]}, **DIRECT)
    secret = "hf_abcdefgh12345678"  # noqa: S105 - looked for in what is shown
    done = cluster.run("train", expect=100, env={"HF_TOKEN": secret})
    assert secret not in done.stdout + done.stderr
    assert "token ***" in done.stderr
    assert "bad ***" in done.stdout


def test_dry_run_prints_the_plan_and_starts_nothing(cluster: Cluster) -> None:
    """What would run where, and no trace of a run afterwards."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    done = cluster.run("train", "--dry-run", "--", "--lr", "1")
    assert "train.py --lr 1" in done.stdout
    assert "a  node 0 · rank 0" in done.stdout
    assert cluster.json("status", "--all")["runs"] == []


def test_killing_an_agent_ends_its_ranks_and_fails_the_run(cluster: Cluster) -> None:
    """kill -9 of the agent: nothing of the run is left on its host, and the state says so."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    run = cluster.start()
    cluster.until_state(run, "running")
    os.kill(cluster.agent_pid("b", run), signal.SIGKILL)
    cluster.until_state(run, "failed")
    assert "agent died" in cluster.run("status", run).stdout
    done = cluster.run("stop", run, "--grace", "1")
    assert "no process" in done.stdout
    assert not cluster.processes(run)


def test_an_agent_archive_that_was_cut_off_is_sent_again(cluster: Cluster) -> None:
    """An empty file under the right name must not make the host useless for ever."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    run = cluster.start()
    (archive,) = cluster.workdir("b").glob("agent/*.pyz")
    archive.write_bytes(b"")
    assert cluster.until_state(run, "running")
    archive.write_bytes(b"PK")
    cluster.run("stop", run, "--grace", "1")
    archive.unlink()
    assert cluster.run("train", "-d").stdout.startswith("t-")
    cluster.run("stop", "-y", "--grace", "1")


def test_our_own_folders_are_never_pushed_as_code(cluster: Cluster) -> None:
    """Workdirs and pulled runs that lie in the code folder stay out of the next push, and out of git."""
    cluster.write_script("print(1)", code={"path": "."}, **DIRECT)
    (cluster.folder / "train.py").write_text("print(1)")
    cluster.home.rename(cluster.folder.parent / "home")
    cluster.home = cluster.folder.parent / "home"
    first = cluster.run("train").stderr
    again = cluster.run("train").stderr
    assert re.search(r"code +4 of 4 files sent", first), first
    assert re.search(r"code +4 files, already there", again), again


def test_a_failed_pull_does_not_replace_the_verdict(cluster: Cluster) -> None:
    """`llmctl-runs` is a file here: the run's own exit code and verdict come all the same."""
    (cluster.folder / "llmctl-runs").write_text("in the way")
    cluster.write_script("raise SystemExit(3)", **DIRECT)
    done = cluster.run("train", expect=100)
    assert "exit 3" in done.stdout
    assert "not pulled" in done.stderr


def test_a_failed_detached_run_is_asked_again_until_all_its_nodes_have_ended(cluster: Cluster) -> None:
    """Rank 1 fails, rank 0 sleeps on: `status` keeps telling of the node that still runs; `stop` ends it."""
    cluster.write_script(scripts.ONE_FAILS, **DIRECT)
    run = cluster.start()
    cluster.until_state(run, "failed")
    nodes = cluster.json("status", run)["run"]["nodes"]
    assert [node["state"] for node in nodes] == ["running", "failed"]
    cluster.run("stop", run, "--grace", "1")
    nodes = cluster.json("status", run)["run"]["nodes"]
    assert [node["state"] for node in nodes] == ["cancelled", "failed"]
    assert cluster.state(run) == "failed"
    assert not cluster.processes(run)
