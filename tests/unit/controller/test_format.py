"""Numbers read well at every size."""

from __future__ import annotations

import pytest

from llmctl.controller.ui import format as fmt


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.62, "0.6 s"), (41, "41 s"), (125, "2 m 05 s"), (7620, "2 h 07 m"), (273600, "3 d 4 h")],
)
def test_duration(seconds: float | None, text: str) -> None:
    """Two units at most."""
    assert fmt.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (18_000, "18 kB"), (1_100_000_000, "1.1 GB")],
)
def test_size(count: int, text: str) -> None:
    """Powers of 1000, as disks are sold."""
    assert fmt.size(count) == text


@pytest.mark.parametrize(("value", "text"), [(980.0, "980"), (41_200.0, "41.2k"), (1.3e6, "1.3M")])
def test_rate(value: float, text: str) -> None:
    """Three digits say enough about a speed."""
    assert fmt.rate(value) == text


@pytest.mark.parametrize(("value", "text"), [(2.9e-4, "2.9e-4"), (0.002, "2.0e-3"), (None, "-")])
def test_learning_rate(value: float | None, text: str) -> None:
    """Without the zero that Python pads the exponent with."""
    assert fmt.learning_rate(value) == text


@pytest.mark.parametrize(
    ("items", "text"),
    [(["a"], "a"), (["a", "b"], "a, b"), ([str(n) for n in range(64)], "0, 1, 2, 3 and 60 more")],
)
def test_names(items: list[str], text: str) -> None:
    """64 hosts do not fill the screen."""
    assert fmt.names(items) == text
