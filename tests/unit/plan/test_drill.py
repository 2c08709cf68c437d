"""What a drill asks for and how it is judged: values in, values out."""

from __future__ import annotations

import pytest

from llmctl.controller.plan.drill import (
    Assertion,
    Check,
    Ledger,
    Lineage,
    Recovery,
    Struck,
    fault_of,
    judge,
    own_name,
    own_place,
    parse_asserts,
    parse_target,
)
from llmctl.errors import ConfigError
from llmctl.wire.drill import FREEZE, KILL_HOST, KILL_RANK

PEERS = [("a", 0, 2), ("b", 2, 2)]
BACK = Recovery(attempt=2, seconds=12.0, hosts=("a", "b"))
EXACT = Ledger(proven=True, text="steps 0-60: 240 samples, each exactly once")
STRUCK = Struck(attempt=1, step=50)


def lineage(again: dict[int, float]) -> Lineage:
    """Attempt 1 did steps 1-51, attempt 2 what is given."""
    return Lineage(losses={1: {step: 5.0 - step / 100 for step in range(1, 52)}, 2: again})


def same(start: int, end: int, off: float = 0.0) -> dict[int, float]:
    return {step: (5.0 - step / 100) * (1 + off) for step in range(start, end)}


def judged(asserts: str, losses: Lineage, *, recovery: Recovery = BACK, ledger: Ledger = EXACT) -> Check:
    """The last check: that of the assertion."""
    return judge(parse_asserts(asserts), STRUCK, recovery, losses, ledger, fp32=True)[-1]


def test_asserts_are_read_in_order() -> None:
    """The example of the issue, word for word."""
    assert parse_asserts("lost-steps<=10,ledger,loss") == (
        Assertion(kind="lost-steps", at_most=10.0),
        Assertion(kind="ledger"),
        Assertion(kind="loss"),
    )


@pytest.mark.parametrize(
    "text",
    ["", ",", "ledger<=1", "loss<=-1", "loss<=nan", "recovery", "steps", "loss,loss", "loss<1", "loss<="],
)
def test_asserts_that_mean_nothing_are_refused(text: str) -> None:
    """Nothing is asserted silently."""
    with pytest.raises(ConfigError):
        parse_asserts(text)


@pytest.mark.parametrize(
    ("text", "freeze", "fault", "host", "ranks"),
    [
        ("host=1", False, KILL_HOST, "b", ()),
        ("host=a", True, FREEZE, "a", ()),
        ("rank=2", False, KILL_RANK, "b", (2,)),
        ("rank=1", True, FREEZE, "a", (1,)),
    ],
)
def test_targets_are_found(text: str, freeze: bool, fault: str, host: str, ranks: tuple[int, ...]) -> None:
    """Hosts by name or by number in rank order, ranks on the host that runs them."""
    found = fault_of(freeze=freeze, target=parse_target(text, "--kill"), flag="--kill", peers=PEERS)
    assert (found.fault, found.host, found.ranks) == (fault, host, ranks)


@pytest.mark.parametrize("text", ["host=2", "host=c", "rank=4", "rank=-1", "rank=x", "node=1", "host="])
def test_targets_that_are_not_there_are_refused(text: str) -> None:
    """A drill that hits nothing would prove nothing."""
    with pytest.raises(ConfigError):
        fault_of(freeze=False, target=parse_target(text, "--kill"), flag="--kill", peers=PEERS)


def test_lost_steps_count_from_the_last_one_that_any_host_knew() -> None:
    """Metrics know step 51, the host that was hit only 50: from step 40 on, 11 are lost."""
    losses = lineage(same(41, 60))
    assert judged("lost-steps<=11", losses).held
    assert not judged("lost-steps<=10", losses).held
    assert "11 lost" in judged("lost-steps<=10", losses).text


def test_a_loss_that_comes_out_otherwise_is_found() -> None:
    """The steps done twice agree within the tolerance, or the drill fails and names the step."""
    assert judged("loss", lineage(same(41, 60))).held
    assert judged("loss", lineage(same(41, 60, off=1e-3))).held is False
    assert judged("loss<=1e-2", lineage(same(41, 60, off=1e-3))).held
    assert not judged("loss", lineage({**same(41, 60), 47: float("nan")})).held


def test_a_loss_that_was_done_only_once_proves_nothing() -> None:
    """One step again shows the weights, not the optimizer; none shows nothing at all."""
    assert not judged("loss", lineage(same(52, 60))).held
    assert not judged("loss", lineage(same(51, 60))).held
    assert judged("loss", lineage(same(50, 60))).held


def test_what_never_came_back_holds_nothing() -> None:
    """Without a later attempt every assertion about it fails; none passes for want of evidence."""
    lost = Recovery(why="the run is failed: b is lost")
    checks = judge(
        parse_asserts("lost-steps<=99,loss,recovery<=999"), STRUCK, lost, lineage({}), EXACT, fp32=True
    )
    assert [check.held for check in checks] == [False] * 4
    assert checks[0].text == "the run is failed: b is lost"


def test_a_slow_recovery_and_an_open_ledger_fail() -> None:
    """Bounds in seconds, and the audit's own word."""
    losses = lineage(same(41, 60))
    assert judged("recovery<=12", losses).held
    assert not judged("recovery<=11.9", losses).held
    assert not judged("ledger", losses, ledger=Ledger(proven=False, text="journals are missing")).held


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://bucket/ck/x", "s3://bucket/ck/x-drill-t"),
        ("s3://bucket/ck/", "s3://bucket/ck-drill-t"),
        ("s3://bucket", "s3://bucket/drill-t"),
        ("s3://bucket/", "s3://bucket/drill-t"),
        ("hdfs:///ck", "hdfs:///ck-drill-t"),
        ("/data/ck", "/data/ck-drill-t"),
        ("~/ck", "~/ck-drill-t"),
        ("file:///data/ck", "file:///data/ck-drill-t"),
    ],
)
def test_a_drill_saves_where_no_run_does(uri: str, place: str) -> None:
    """Beside the job's checkpoints, in the same bucket; never below them, never in another bucket."""
    assert own_place(uri, "t") == place


def test_its_name_is_a_name() -> None:
    """Also of the longest job name, and of one that would end in a dash."""
    assert own_name("a" * 48) == "a" * 42 + "-drill"
    assert own_name("a" * 41 + "-b") == "a" * 41 + "-drill"
