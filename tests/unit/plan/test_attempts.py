"""What follows an attempt: the pure decisions of a supervisor."""

from __future__ import annotations

from typing import Any

import pytest

from llmctl.controller.config.models import JobFile
from llmctl.controller.plan.attempts import (
    AttemptEnd,
    End,
    EndedBy,
    HostSight,
    Policy,
    Start,
    Wait,
    backoff_s,
    decide,
    policy_of,
)
from llmctl.wire.states import RunState

FREE, BUSY, GONE = HostSight.FREE, HostSight.BUSY, HostSight.GONE


def policy(hosts: str = "abcd", **restarts: Any) -> Policy:
    job = JobFile.model_validate(
        {"version": 1, "name": "t", "data": {"uri": "/x"}, "restarts": {"backoff_s": 2, **restarts}}
    )
    return policy_of(job, tuple(hosts))


def failed(number: int = 1, **changes: Any) -> AttemptEnd:
    return AttemptEnd(
        **{"attempt": number, "by": EndedBy.FAILURE, "reason": "rank 1: exit 1 on b", **changes}
    )


def lost(number: int = 1) -> AttemptEnd:
    return AttemptEnd(attempt=number, by=EndedBy.LOSS, reason="b is lost")


def all_free(hosts: str = "abcd") -> dict[str, HostSight]:
    return dict.fromkeys(hosts, FREE)


def test_the_recipe_is_tried_again_by_default_and_a_script_is_not() -> None:
    """Nobody knows what a script does when it is started twice; unless its job asks for it."""
    script: dict[str, Any] = {"version": 1, "name": "t", "train": {"script": "x.py"}}
    assert policy().restarts == 3
    assert not policy_of(JobFile.model_validate(script), "ab").supervised
    asked = policy_of(JobFile.model_validate({**script, "restarts": {"max": 1}}), "ab")
    assert (asked.restarts, asked.supervised, asked.elastic) == (1, True, False)


def test_a_failure_is_followed_by_the_same_hosts_after_the_back_off() -> None:
    """All hosts, in rank order: at once the first time, then after what is left of the back-off."""
    assert decide(policy(), [failed()], all_free(), 0.0) == Start(hosts=tuple("abcd"), after_s=0.0)
    twice = [failed(1), failed(2)]
    assert decide(policy(), twice, all_free(), 0.5) == Start(hosts=tuple("abcd"), after_s=1.5)
    assert decide(policy(), twice, all_free(), 9.0) == Start(hosts=tuple("abcd"), after_s=0.0)


def test_back_off_doubles_only_where_nothing_was_reached() -> None:
    """A checkpoint in between starts it anew; a lost host needs none."""
    assert backoff_s(policy(), [failed(1), failed(2), failed(3)]) == 4.0
    assert backoff_s(policy(), [failed(1), failed(2, checkpoint=10)]) == 0.0
    assert backoff_s(policy(), [failed(1), failed(2, checkpoint=10), failed(3, checkpoint=10)]) == 2.0
    assert backoff_s(policy(), [failed(1), lost(2)]) == 0.0


def test_restarts_are_counted() -> None:
    """After `max` of them the last failure is the run's; growing again is none."""
    ends = [failed(n, step=n) for n in (1, 2)]
    grown = AttemptEnd(attempt=3, by=EndedBy.REGROWTH, reason="hosts are back")
    assert isinstance(decide(policy(max=2), [*ends, grown], all_free(), 9), Start)
    end = decide(policy(max=2), [*ends, grown, failed(4, step=4)], all_free(), 99)
    assert end == End(state=RunState.FAILED, why="rank 1: exit 1 on b, after 2 restarts")


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (failed(codes=frozenset({93})), "exit 93 is not tried again"),
        (failed(codes=frozenset({7, 1})), "exit 7 is not tried again"),
        (failed(words="RuntimeError: CUDA out of memory. Tried"), "`CUDA out of memory` is not tried again"),
    ],
)
def test_what_can_not_get_better_is_not_tried_again(end: AttemptEnd, why: str) -> None:
    """By exit code, also 93 of itself, and by a text of the failing rank."""
    decision = decide(policy(no_retry_on=[7, "CUDA out of memory"]), [end], all_free(), 9)
    assert isinstance(decision, End)
    assert why in decision.why


def test_a_crash_loop_is_named() -> None:
    """Three times in one way at one step, with no checkpoint between: more attempts can't help."""
    ends = [failed(n, step=120, checkpoint=100) for n in (1, 2, 3)]
    decision = decide(policy(max=9), ends, all_free(), 99)
    assert isinstance(decision, End)
    assert decision.why == "crash loop: attempts 1-3 all failed after step 120: rank 1: exit 1 on b"
    ends[1] = failed(2, step=121, checkpoint=100)
    assert isinstance(decide(policy(max=9), ends, all_free(), 99), Start)


def test_without_min_nodes_a_lost_host_is_waited_for_and_then_given_up() -> None:
    """Three of four are no run; after `wait_for_hosts_s` it has failed."""
    sights = {**all_free(), "b": GONE}
    assert isinstance(decide(policy(wait_for_hosts_s=60), [lost()], sights, 5), Wait)
    end = decide(policy(wait_for_hosts_s=60), [lost()], sights, 60)
    assert end == End(state=RunState.FAILED, why="waited 60 s for b; b is lost")


def test_with_min_nodes_the_rest_goes_on_once_the_lost_one_has_ended_for_certain() -> None:
    """Not a moment before: it might still write."""
    elastic = policy(min_nodes=2)
    assert isinstance(decide(elastic, [lost()], {**all_free(), "b": BUSY}, 5), Wait)
    assert decide(elastic, [lost()], {**all_free(), "b": GONE}, 5) == Start(hosts=tuple("acd"))
    few = {**dict.fromkeys("abc", GONE), "d": FREE}
    assert isinstance(decide(elastic, [lost()], few, 5), Wait)


def test_success_and_a_stop_are_the_end() -> None:
    """Whatever the hosts are like."""
    done = AttemptEnd(attempt=1, by=EndedBy.SUCCESS)
    assert decide(policy(), [done], {}, 0) == End(state=RunState.SUCCEEDED, why="")
    stop = AttemptEnd(attempt=1, by=EndedBy.STOP, reason="stop requested")
    assert decide(policy(), [stop], {}, 0) == End(state=RunState.CANCELLED, why="stop requested")
