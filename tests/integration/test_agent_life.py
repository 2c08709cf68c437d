"""The node agent's ordinary life: start, the ranks' world, attempts, status, files."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmctl.wire import environment
from llmctl.wire.records import EventKind
from llmctl.wire.states import NodeState
from tests.integration.agent_host import AgentHost, hosts, old_python, start_text, until

RUN = "life-0a1b"


@pytest.fixture(params=["this", "3.9"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AgentHost]:
    """The agent and its ranks under this interpreter, and under the oldest that hosts may have."""
    yield from hosts(tmp_path, sys.executable if request.param == "this" else old_python())


@pytest.fixture
def this_host(tmp_path: Path) -> Iterator[AgentHost]:
    yield from hosts(tmp_path)


def test_a_run_succeeds_and_every_rank_is_told(host: AgentHost) -> None:
    """A start answers with the agent's pid; the verdict lists every rank with exit 0 and nothing left."""
    reply = host.start(host.spec(RUN, "import os; print('rank', os.environ['RANK'])"))
    node = host.ended(RUN)
    assert node.state is NodeState.SUCCEEDED
    assert node.lease is not None
    assert node.lease.agent_pid == reply.agent_pid
    assert node.exit is not None
    assert node.exit.left == ()
    assert [(rank.rank, rank.code) for rank in node.exit.ranks] == [(0, 0), (1, 0)]
    assert [host.log(RUN, rank) for rank in (0, 1)] == ["rank 0\n", "rank 1\n"]


def test_events_are_numbered_without_gaps(host: AgentHost) -> None:
    """events.jsonl counts from 1, starts with the agent and ends with the verdict."""
    host.start(host.spec(RUN, "print(1)"))
    host.ended(RUN)
    events = host.events(RUN)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[0].kind == EventKind.AGENT_STARTED.value
    assert events[-1].kind == EventKind.ENDED.value
    assert {event.rank for event in events if event.kind == EventKind.RANK_EXITED.value} == {0, 1}


def test_ranks_find_torchruns_contract_and_ours(host: AgentHost) -> None:
    """A direct rank has torchrun's variables, ours and the job's own, and nothing of the operator's."""
    script = "import os, json; print(json.dumps(dict(os.environ)))"
    spec = host.spec(
        RUN,
        script,
        nproc=1,
        world_size=3,
        first_rank=2,
        nnodes=2,
        node_rank=1,
        env={"MINE": "x", "PYTHONPATH": "/p"},
    )
    os.environ["LLMCTL_TEST_OPERATOR"] = "leak"
    try:
        host.start(spec)
    finally:
        del os.environ["LLMCTL_TEST_OPERATOR"]
    host.ended(RUN)
    env = json.loads(host.log(RUN, 2))
    assert (env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) == (
        "2",
        "0",
        "3",
        "1",
    )
    assert (env["GROUP_RANK"], env["GROUP_WORLD_SIZE"]) == ("1", "2")
    assert env["MASTER_PORT"] == str(spec.launch.master_port)
    assert env[environment.RUN_ID] == RUN
    assert env[environment.CHECKPOINT_URI] == host.run(RUN).checkpoints
    assert env["MINE"] == "x"
    ours = host.layout.agent_dir(host.hash)
    assert env["PYTHONPATH"] == f"{ours}/llmctl/worker/startup:/p:{ours}"
    assert "LLMCTL_TEST_OPERATOR" not in env
    assert "TORCHELASTIC_USE_AGENT_STORE" not in env


def test_the_same_start_again_is_the_same_agent(host: AgentHost) -> None:
    """A retried start answers with the same pid and starts nothing; another spec is refused."""
    spec = host.spec(RUN, "import time; time.sleep(60)")
    first = host.start(spec)
    assert host.start(spec) == first
    other = dataclasses.replace(spec, env={"A": "b"})
    error = host.fails("start", stdin=start_text(other))
    assert "other settings" in error["message"]
    assert len([e for e in host.events(RUN) if e.kind == EventKind.AGENT_STARTED.value]) == 1


def test_a_job_never_writes_into_the_shared_tree(this_host: AgentHost) -> None:
    """The cwd is a copy of the pushed tree, writable even where the tree is not, links and exec bits kept."""
    spec = this_host.spec(RUN, "open('train.py', 'a').write('#'); open('sub/new', 'w').write('x')", nproc=1)
    tree = Path(this_host.layout.tree(spec.tree or ""))
    (tree / "sub").mkdir()
    (tree / "tool").write_text("#!/bin/sh\n")
    (tree / "tool").chmod(0o555)
    (tree / "link").symlink_to("train.py")
    before = (tree / "train.py").read_text()
    (tree / "sub").chmod(0o555)
    this_host.start(spec)
    assert this_host.ended(RUN).state is NodeState.SUCCEEDED, this_host.said(RUN)
    assert (tree / "train.py").read_text() == before
    assert not (tree / "sub/new").exists()
    code = Path(this_host.run(RUN).code)
    assert (code / "link").is_symlink()
    assert os.access(code / "tool", os.X_OK)


def test_the_next_attempt_goes_on_in_the_same_cwd(this_host: AgentHost) -> None:
    """Attempt 2 sees what attempt 1 wrote, has its own logs, and continues the numbering of events."""
    script = "import os; print(os.path.exists('mark')); open('mark', 'w').close()"
    spec = this_host.spec(RUN, script, nproc=1)
    this_host.start(spec)
    this_host.ended(RUN)
    this_host.start(dataclasses.replace(spec, attempt=2))
    node = this_host.ended(RUN)
    assert node.spec.attempt == 2
    assert [this_host.log(RUN, 0, attempt) for attempt in (1, 2)] == ["False\n", "True\n"]
    events = this_host.events(RUN)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    error = this_host.fails("start", stdin=start_text(dataclasses.replace(spec, env={"A": "b"})))
    assert error["hint"] == "start attempt 3"


def test_secrets_reach_the_ranks_and_nothing_else(this_host: AgentHost) -> None:
    """A secret's value is in no file of the workdir and on no command line, but in the ranks' environment."""
    secret = f"tok{os.urandom(12).hex()}"
    ok = "import os, time; print(len(os.environ['HF_TOKEN'])); time.sleep(60)"
    this_host.start(this_host.spec(RUN, ok, secret_names=("HF_TOKEN",)), HF_TOKEN=secret)
    until(lambda: this_host.log(RUN, 0) and this_host.log(RUN, 1))
    assert this_host.log(RUN, 0) == f"{len(secret)}\n"
    until(lambda: this_host.status(RUN).state is NodeState.RUNNING)
    needle = secret.encode()
    for path in Path(this_host.layout.workdir).rglob("*"):
        assert not path.is_file() or needle not in path.read_bytes(), path
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        assert needle not in _read(path), path
    this_host.stop(RUN, grace_s=0)
    for path in Path(this_host.run(RUN).root).rglob("*"):
        assert not path.is_file() or needle not in path.read_bytes(), path


def test_status_knows_step_checkpoint_and_all_runs(this_host: AgentHost) -> None:
    """Status gives the last step and commit, newest run first, whatever else is in the metrics."""
    script = """
import json, os
with open(os.environ["LLMCTL_METRICS"], "ab") as file:
    file.write(json.dumps({"kind": "checkpoint", "t": 1.0, "step": 40}).encode() + b"\\n")
    for step in range(1, 3001):
        file.write(json.dumps({"kind": "step", "t": 1.0, "step": step, "mine": "x"}).encode() + b"\\n")
    file.write(b'\\xff\\xfe junk "step"\\n["step"]\\n{"kind": "step", "half')
"""
    this_host.start(this_host.spec(RUN, script, nproc=1))
    this_host.ended(RUN)
    this_host.start(this_host.spec("later-0a1b", "print(1)", nproc=1))
    this_host.ended("later-0a1b")
    newest, oldest = this_host.statuses()
    assert (newest.spec.run_id, oldest.spec.run_id) == ("later-0a1b", RUN)
    assert oldest.metrics is not None
    assert (oldest.metrics["step"], oldest.metrics["mine"], oldest.checkpoint_step) == (3000, "x", 40)
    assert oldest.last_event is not None
    assert oldest.last_event.kind == EventKind.ENDED.value


def test_files_lists_what_can_be_pulled_and_no_more(this_host: AgentHost) -> None:
    """Committed checkpoints, logs and records are listed; code, uncommitted checkpoints and links are not."""
    script = """
import os
for name, marker in (("step-00000001", "COMMIT.json"), ("step-00000002.tmp", "x")):
    folder = os.path.join(os.environ["LLMCTL_RUN_DIR"], "checkpoints", name)
    os.makedirs(folder)
    open(os.path.join(folder, marker), "w").close()
    open(os.path.join(folder, "data"), "w").write("12345")
os.symlink("/etc/passwd", os.path.join(folder, "..", "step-00000001", "evil"))
"""
    this_host.start(this_host.spec(RUN, script, nproc=1))
    this_host.ended(RUN)
    files = {entry.path: entry.size for entry in this_host.files(RUN).files}
    assert files["checkpoints/step-00000001/data"] == 5
    assert {"node.json", "events.jsonl", "attempt-1/rank-0.log", "attempt-1/exit.json"} <= set(files)
    assert not [path for path in files if path.startswith("code") or "tmp" in path or "evil" in path]
    assert list(files) == sorted(files)


@pytest.mark.parametrize("verb", ["status", "stop", "follow", "files"])
def test_an_unknown_run_is_status_3(this_host: AgentHost, verb: str) -> None:
    """Every verb says NotFoundError with exit status 3, also for a name that would leave the folder."""
    for name in ("nobody-0000", "../../etc"):
        error = this_host.fails(verb, name, stdin='{"grace_s": 1}', code=3)
        assert error["error"] == "NotFoundError"


def test_bad_requests_are_one_line_of_json(this_host: AgentHost) -> None:
    """No JSON, a missing key, a wrong launcher and an unknown verb are errors, never a traceback."""
    assert this_host.fails("start", stdin="hello")["error"] == "IntegrityError"
    assert this_host.fails("start", stdin="{}")["error"] == "IntegrityError"
    assert this_host.fails("dance")["error"] == "ConfigError"
    wrong = this_host.spec(RUN, launcher="mpirun")
    assert "mpirun" in this_host.fails("start", stdin=start_text(wrong))["message"]
    damaged = dataclasses.replace(this_host.spec(RUN), agent="f" * 64)
    assert "agent archive" in this_host.fails("start", stdin=start_text(damaged))["message"]


def test_one_damaged_run_hides_no_other(this_host: AgentHost) -> None:
    """A node.json or exit.json cut in half concerns its own run only."""
    for run_id in (RUN, "good-0a1b"):
        this_host.start(this_host.spec(run_id, "print(1)", nproc=1))
        this_host.ended(run_id)
    spec_file = Path(this_host.run(RUN).node_spec)
    spec_file.write_bytes(spec_file.read_bytes()[:40])
    assert [node.spec.run_id for node in this_host.statuses()] == ["good-0a1b"]
    assert this_host.fails("status", RUN)["error"] == "IntegrityError"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
