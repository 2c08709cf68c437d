"""What the hosts say becomes one state: failed, lost-contact and running are never mixed up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmctl.controller.collect.view import Answer, RunView, merge
from llmctl.controller.plan.plan import plan_run
from llmctl.errors import HostUnreachableError
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.records import NodeExit, NodeStatus, RankExit
from llmctl.wire.states import NodeState, RunState
from tests.unit.controller.builders import config, facts, host
from tests.unit.controller.test_plan import IDENTITY, LO

NOW = 1000.0


def node(name: str, state: NodeState, *, skew: float = 0.0, **changes: Any) -> Answer:
    hosts = (host("a", "10.0.0.1"), host("b", "10.0.0.2"))
    known = {h.name: facts(h.name, LO, ("eth0", h.addr, 24), reached_by=h.addr) for h in hosts}
    specs = {n.host: n for n in plan_run(config(*hosts), known, IDENTITY).nodes}
    status = NodeStatus(spec=specs[name], state=state, now=NOW + skew, agent_alive=True, **changes)
    return Answer(host=name, asked_at=NOW, answered_at=NOW, status=status)


def lost(name: str) -> Answer:
    error = HostUnreachableError("timed out", host=name, stage="connect")
    return Answer(host=name, asked_at=NOW, answered_at=NOW, error=error)


def failed(name: str, rank: int, at: float, *, skew: float = 0.0) -> Answer:
    ended = RankExit(rank=rank, local_rank=0, pid=1, code=1, started_at=0.0, ended_at=at + skew)
    verdict = NodeExit(state=NodeState.FAILED, code=1, reason=f"rank {rank}: exit 1", ended_at=at + skew)
    return node(name, NodeState.FAILED, skew=skew, exit=verdict, failure=ended)


def test_answers_under_way_do_not_reorder_failures_of_hosts_with_one_clock() -> None:
    """b failed 50 ms before a; a's answer came at once, b's was under way for 0.8 s."""
    a, b = failed("a", 0, NOW - 1.0), failed("b", 1, NOW - 1.05)
    assert b.status is not None
    slow = replace(b, asked_at=NOW - 0.8, status=replace(b.status, now=NOW - 0.8))
    assert merge("demo-7f3a", {"a": a, "b": slow}, NOW).failures[0].host == "b"


def stopped(name: str, at: float) -> Answer:
    verdict = NodeExit(
        state=NodeState.CANCELLED, code=143, reason="stop", ended_at=at + 1, stop_requested_at=at
    )
    return node(name, NodeState.CANCELLED, exit=verdict)


def view(*answers: Answer) -> RunView:
    return merge("demo-7f3a", {answer.host: answer for answer in answers}, NOW)


def test_all_running() -> None:
    """Two running nodes make a running run, without a verdict."""
    found = view(node("a", NodeState.RUNNING), node("b", NodeState.RUNNING))
    assert (found.state, found.answered, found.verdict) == (RunState.RUNNING, 2, ExitCode.NOT_FINISHED)


def test_a_host_that_can_not_be_asked_is_lost_contact() -> None:
    """Silence is not failure: the note names the host and the reason."""
    found = view(node("a", NodeState.RUNNING), lost("b"))
    assert found.state is RunState.LOST_CONTACT
    assert found.note == "b: timed out"
    assert found.verdict is ExitCode.NOT_FINISHED


def test_success_needs_every_host() -> None:
    """One host's success beside an unreachable one proves nothing."""
    assert view(node("a", NodeState.SUCCEEDED), lost("b")).state is RunState.LOST_CONTACT
    both = view(node("a", NodeState.SUCCEEDED), node("b", NodeState.SUCCEEDED))
    assert (both.state, both.verdict) == (RunState.SUCCEEDED, ExitCode.OK)


def test_the_first_failure_is_first_by_a_common_clock() -> None:
    """A host whose clock is an hour ahead does not look like the later one."""
    found = view(failed("a", 0, at=902.0, skew=3600.0), failed("b", 1, at=905.0))
    assert [f.host for f in found.failures] == ["a", "b"]
    assert found.note == "rank 0: exit 1 on a"
    assert found.verdict is ExitCode.JOB_FAILED


def test_a_failure_counts_although_another_host_is_unreachable() -> None:
    """A host's own word about its failure is not weakened by another's silence."""
    assert view(failed("a", 0, at=900.0), lost("b")).state is RunState.FAILED


def test_peers_that_break_after_a_stop_do_not_make_it_a_failure() -> None:
    """A stop ends one node first; the other's lost connection is its consequence."""
    assert view(stopped("a", 900.0), failed("b", 1, at=900.4)).state is RunState.CANCELLED


def test_peers_that_are_stopped_after_a_failure_do_not_hide_it() -> None:
    """When one node has failed, the others are stopped: the run has failed."""
    found = view(failed("a", 0, at=900.0), stopped("b", 910.0))
    assert (found.state, found.failures[0].host) == (RunState.FAILED, "a")


def test_progress_and_eta_come_from_the_last_step() -> None:
    """ETA is the remaining tokens over the last speed."""
    metrics = {"step": 50, "total": 100, "loss": 2.5, "tokens": 1000, "tokens_per_s": 500.0}
    found = view(node("a", NodeState.RUNNING, metrics=metrics), node("b", NodeState.RUNNING))
    assert (found.step, found.total, found.loss, found.eta_s) == (50, 100, 2.5, 100.0)


def test_a_host_that_never_started_is_named() -> None:
    """A controller killed between two starts leaves this; it is neither lost nor failed."""
    missing = Answer(host="b", asked_at=NOW, answered_at=NOW, missing=True)
    assert view(node("a", NodeState.STARTING), missing).note == "b: was never started"


def test_a_run_is_final_only_when_every_node_has_ended() -> None:
    """A failed run whose other node still runs, or can't be asked, is asked again next time."""
    assert not view(failed("a", 0, at=900.0), node("b", NodeState.RUNNING)).final
    assert not view(failed("a", 0, at=900.0), lost("b")).final
    assert view(failed("a", 0, at=900.0), stopped("b", 910.0)).final
    missing = Answer(host="b", asked_at=NOW, answered_at=NOW, missing=True)
    assert view(failed("a", 0, at=900.0), missing).final


def test_a_checkpoint_that_failed_is_noted_while_the_run_goes_on() -> None:
    """The run's state is not touched by it; a lost host is the more urgent note."""
    told = node("a", NodeState.RUNNING, checkpoint_problem="checkpoint 20 failed: the disk is full")
    found = view(told, node("b", NodeState.RUNNING))
    assert (found.state, found.note) == (RunState.RUNNING, "checkpoint 20 failed: the disk is full")
    assert view(told, lost("b")).note == "b: timed out"
