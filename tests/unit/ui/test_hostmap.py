"""`hosts map` and `hosts check --deep` for people: nothing missing, nothing endless."""

from __future__ import annotations

import io
import itertools

from rich.console import Console

from llmctl.controller.execute.check import Checked
from llmctl.controller.plan.deep import Deep, PairResult, StoreResult
from llmctl.controller.plan.netchoice import choose
from llmctl.controller.plan.netmap import End, Link, NetMap, Way
from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.hostdeep import show_deep
from llmctl.controller.ui.hostmap import MOST_ROWS, show_map
from llmctl.wire.deep import DeepReply, DeviceSpeed
from tests.unit.controller.builders import facts


def screen() -> tuple[Screen, io.StringIO]:
    """A screen whose stdout is read back."""
    out = io.StringIO()
    made = Screen(color="never", json_output=False)
    made.out = Console(file=out, width=200)
    return made, out


def netmap(count: int) -> NetMap:
    names = [f"h{number}" for number in range(count)]
    where = {name: End(addr=f"10.0.0.{n + 1}", interface="eth0", prefix=24) for n, name in enumerate(names)}
    links = tuple(
        Link(a=a, b=b, at=100.0, ways=(Way(a=where[a], b=where[b], rtt_s=2e-4, there=1.2e9, back=1.1e9),))
        for a, b in itertools.combinations(names, 2)
    )
    return NetMap(hosts=tuple(names), links=links)


def test_a_way_is_a_line_with_both_directions_and_its_age() -> None:
    """The chosen one is marked, and every reason stands below the table."""
    found, (made, out) = netmap(2), screen()
    show_map(made, found, choose(found, found.hosts), [], now=160.0)
    lines = out.getvalue().splitlines()
    assert lines[1].split() == [
        *("*", "h0", "h1", "eth0", "0.20", "ms", "9.6", "Gbit/s", "8.8", "Gbit/s", "60", "s"),
    ]
    assert [line.split()[0] for line in lines[2:]] == ["interface", "master", "order"]


def test_of_many_ways_the_slowest_are_shown_and_the_rest_is_counted() -> None:
    """20 hosts have 190 pairs: nobody reads those."""
    found, (made, out) = netmap(20), screen()
    show_map(made, found, choose(found, found.hosts), [], now=160.0)
    text = out.getvalue()
    assert f"and {190 - MOST_ROWS} more" in text
    assert "h0, h1, h2, h3, h4, h5, h6, h7, h8, h9, h10, h11 and 8 more" in text


def test_a_deep_check_is_a_line_per_host() -> None:
    """Several GPUs in one cell, each pair on both hosts, a failure in words."""
    deep = Deep(
        devices=tuple(
            DeviceSpeed(name=f"gpu {n}", model="H100", flops=f) for n, f in enumerate((6e14, 5e14))
        ),
        stores=(
            StoreResult(uri="s3://b/c", use="write", reply=DeepReply(up=1e8, down=2e8)),
            StoreResult(
                uri="s3://b/c", use="trial", reply=DeepReply(bytes=10**9, seconds=10), wanted=2 * 10**9
            ),
        ),
    )
    results = {
        "a": Checked(facts=facts("a"), deep=deep),
        "b": Checked(facts=facts("b"), deep=Deep(error="torch can't be imported")),
    }
    made, out = screen()
    show_deep(made, results, [PairResult(a="a", b="b", error="timed out")])
    header, a, b = out.getvalue().splitlines()
    assert header.split() == ["HOST", "COMPUTE", "ALL-REDUCE", "STORE", "UP", "/", "DOWN", "CHECKPOINT"]
    assert "2 x 550 TFLOP/s (least 500 TFLOP/s)" in a
    assert "failed with b" in a
    assert "100 MB/s / 200 MB/s" in a
    assert "2.0 GB in 20 s (100 MB/s)" in a
    assert "failed with a" in b
