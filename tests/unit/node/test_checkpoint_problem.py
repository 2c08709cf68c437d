"""What a host's status says of checkpoints: the last good one, and why there is no newer one."""

from __future__ import annotations

import json
from pathlib import Path

from llmctl.node.status import checkpoint_step, status
from llmctl.wire import codec
from llmctl.wire.layout import HostLayout
from llmctl.wire.metrics import CheckpointFailedLine, CheckpointLine, StepLine
from llmctl.wire.specs import LaunchSpec, NodeSpec, Peer

RUN = "demo-7f3a"


def told(workdir: Path, *lines: object) -> tuple[int | None, str | None]:
    """The status of a run whose metrics are these lines."""
    run = HostLayout(str(workdir)).run(RUN)
    launch = LaunchSpec("direct", "python3", ("t.py",), 1, 0, 1, 1, 0, "127.0.0.1", 1)
    peers = (Peer("a", "127.0.0.1", 0, 1, 0),)
    spec = NodeSpec(RUN, "demo", "a", 1, 0.0, str(workdir), launch, peers, agent="0" * 64)
    Path(run.attempt(1).root).mkdir(parents=True)
    Path(run.node_spec).write_text(codec.dumps(spec))
    Path(run.attempt(1).metrics).write_text("".join(json.dumps(codec.encode(line)) + "\n" for line in lines))
    (node,) = status(str(workdir), RUN).nodes
    assert node.checkpoint_step == checkpoint_step(run, 1)
    return node.checkpoint_step, node.checkpoint_problem


def test_the_last_failure_is_told(tmp_path: Path) -> None:
    """A failed one after a good one: both are shown, whatever steps came since."""
    good, bad = CheckpointLine(1.0, 10, 5, 0.1), CheckpointFailedLine(2.0, 20, "the store is out")
    found = told(tmp_path, good, bad, StepLine(3.0, 21))
    assert found == (10, "checkpoint 20 failed: the store is out")


def test_a_good_one_ends_the_alarm(tmp_path: Path) -> None:
    """Once a later one was committed, the failure is history."""
    bad, good = CheckpointFailedLine(1.0, 10, "the store is out"), CheckpointLine(2.0, 20, 5, 0.1)
    assert told(tmp_path, bad, good) == (20, None)
