"""Who is slow, who is sick, and who only had the wrong partner."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmctl.controller.plan.deep import (
    Deep,
    DeepResults,
    PairResult,
    StoreResult,
    deep_verdicts,
    first_pairs,
    flops,
    second_pairs,
    trial_seconds,
)
from llmctl.controller.plan.verdicts import Level
from llmctl.wire.deep import DeepReply, DeviceSpeed

H100 = "NVIDIA H100 80GB HBM3"


def gpus(*speeds: float, model: str = H100, same: bool = True) -> Deep:
    return Deep(
        devices=tuple(
            DeviceSpeed(name=f"gpu {index}", model=model, flops=speed * 1e12, same=same)
            for index, speed in enumerate(speeds)
        )
    )


def good(a: str, b: str, rate: float = 1e9) -> PairResult:
    return PairResult(a=a, b=b, rate=rate)


def failed(a: str, b: str) -> PairResult:
    return PairResult(a=a, b=b, error="timed out")


def told(*pairs: PairResult) -> dict[str, str]:
    """host -> message of what the pairs say."""
    return {one.host: one.message for one in deep_verdicts(DeepResults(hosts={}, pairs=pairs))}


@given(st.integers(2, 30))
def test_everybody_is_in_a_pair_and_in_one_at_a_time(count: int) -> None:
    """An odd host out gets a partner in a round of its own."""
    names = [f"h{number}" for number in range(count)]
    played = first_pairs(names)
    assert {name for pairs in played for pair in pairs for name in pair} == set(names)
    for pairs in played:
        busy = [name for pair in pairs for name in pair]
        assert len(busy) == len(set(busy))


def test_one_slow_device_of_sixteen_is_found_against_the_median() -> None:
    """With both numbers, on its host only; others of another model are not compared with it."""
    hosts = {"a": gpus(*[600.0] * 8), "b": gpus(*[600.0] * 7, 310.0), "c": gpus(100.0, model="L4")}
    (verdict,) = deep_verdicts(DeepResults(hosts=hosts))
    assert (verdict.host, verdict.level) == ("b", Level.WARN)
    assert "gpu 7 is slow: 310 TFLOP/s, 52% of 600 TFLOP/s, the median of 16 x" in verdict.message


def test_of_two_the_faster_is_the_measure() -> None:
    """A pool of two has no middle."""
    (verdict,) = deep_verdicts(DeepResults(hosts={"a": gpus(600.0), "b": gpus(200.0)}))
    assert verdict.host == "b"


def test_wrong_products_make_a_host_unfit() -> None:
    """A GPU that computes something else each time spoils a run without a word."""
    (verdict,) = deep_verdicts(DeepResults(hosts={"a": gpus(600.0, same=False)}))
    assert verdict.level is Level.UNFIT
    assert "different products" in verdict.message


def test_the_suspects_get_sound_partners() -> None:
    """c and d failed together: each is tried with somebody who works."""
    again = second_pairs([good("a", "b"), failed("c", "d")])
    assert again == [[("c", "a"), ("d", "b")]]
    assert second_pairs([failed("a", "b")]) == []


def test_many_suspects_take_turns_with_few_sound_hosts() -> None:
    """No host is in two pairs of a round, and no suspect is left out."""
    pairs = [good("a", "b"), failed("c", "d"), failed("e", "f"), failed("g", "h")]
    again = second_pairs(pairs)
    assert [name for pairs in again for name, _ in pairs] == list("cdefgh")
    assert all(len({name for pair in pairs for name in pair}) == 2 * len(pairs) for pairs in again)


def test_who_fails_again_is_sick_and_the_partner_is_not() -> None:
    """d failed with c and with b, both of which work with others."""
    found = told(good("a", "b"), failed("c", "d"), good("c", "a"), failed("d", "b"))
    assert list(found) == ["d"]
    assert "all-reduce with c and b fails, which work with others: timed out" in found["d"]


def test_two_that_work_with_others_have_a_bad_link_between_them() -> None:
    """Nobody is sick: the pair is told as a pair."""
    found = told(good("a", "b"), failed("c", "d"), good("c", "a"), good("d", "b"))
    assert list(found) == ["d"]
    assert found["d"] == "all-reduce with c fails: timed out"


def test_a_pair_alone_blames_nobody() -> None:
    """With two hosts there is no third to tell which one it is."""
    assert "no third host could tell which of them is sick" in told(failed("a", "b"))["b"]


def test_slow_is_a_warning_with_the_median() -> None:
    """A rate below a third of the pool's median, again with another partner."""
    pairs = (good("a", "b"), good("c", "d", 1e7), good("c", "a"), good("d", "b", 2e7))
    (verdict,) = deep_verdicts(DeepResults(hosts={}, pairs=pairs))
    assert (verdict.host, verdict.level) == ("d", Level.WARN)
    assert "is slow (20 MB/s, the median of all pairs is 1000)" in verdict.message


def test_places_are_judged_for_each_host() -> None:
    """A refusal is told with the store's own words; a trial that was cut short is reckoned to its end."""
    long = StoreResult(
        uri="s3://b/c", use="trial", reply=DeepReply(bytes=10**9, seconds=30.0), wanted=84 * 10**9
    )
    bad = StoreResult(uri="s3://b/d", use="read", reply=DeepReply(error="AccessDenied", hint="ask for it"))
    found = deep_verdicts(DeepResults(hosts={"a": Deep(stores=(bad, long))}))
    assert [(one.about, one.level) for one in found] == [("store", Level.UNFIT), ("checkpoint", Level.WARN)]
    assert found[0].message == "can't read s3://b/d: AccessDenied"
    assert trial_seconds(long) == 2520
    assert "takes 2520 s" in found[1].message


def test_speeds_have_a_readable_unit() -> None:
    """Three digits are all that a measurement of seconds gives."""
    assert [flops(value) for value in (6.123e14, 8.5e10, 1.2e15, 5e6)] == [
        "612 TFLOP/s",
        "85 GFLOP/s",
        "1.2 PFLOP/s",
        "5 MFLOP/s",
    ]
