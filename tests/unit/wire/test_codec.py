"""The codec: strict when writing, lenient when reading, the same on every Python that a host may have."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import IntegrityError
from llmctl.wire import codec
from llmctl.wire.records import Event, FollowRequest, Frame, Lease, RankExit
from llmctl.wire.states import NodeState

TEXT = st.text(max_size=20)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)

EVENTS = st.builds(
    Event,
    seq=st.integers(1),
    t=FLOAT,
    kind=TEXT,
    attempt=st.integers(1),
    rank=st.none() | st.integers(0),
    code=st.none() | st.integers(0, 255),
    signal=st.none() | TEXT,
    detail=TEXT,
)
FRAMES = st.builds(
    Frame,
    now=FLOAT,
    state=st.sampled_from(NodeState),
    file=TEXT,
    offset=st.integers(0),
    text=TEXT,
    end=st.booleans(),
)
REQUESTS = st.builds(
    FollowRequest,
    offsets=st.dictionaries(TEXT, st.integers(0)),
    logs=st.booleans(),
    ranks=st.lists(st.integers(0)).map(tuple),
    tail=st.integers(),
    attempt=st.none() | st.integers(1),
)


@given(st.one_of(EVENTS, FRAMES, REQUESTS))
def test_what_is_written_is_read_back(value: Any) -> None:
    """Every value survives the wire, on one line, whatever its texts hold."""
    line = codec.dumps(value)
    assert "\n" not in line
    assert codec.loads(type(value), line) == value


def test_a_newer_peers_key_is_ignored() -> None:
    """A field that this side doesn't know must not break a run that it started yesterday."""
    line = json.dumps({"schema": 1, "grace_s": 2, "colour": "red"})
    from llmctl.wire.records import StopRequest

    assert codec.loads(StopRequest, line) == StopRequest(grace_s=2.0)


def test_a_newer_schema_is_refused_with_what_to_do() -> None:
    """Where an old reader would be wrong, it must say so."""
    with pytest.raises(IntegrityError, match="reads up to 1") as caught:
        codec.loads(Event, json.dumps({"schema": 99}))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("nonsense", "not a RankExit document"),
        ("[1]", "expected dict"),
        ('{"rank": "x"}', "RankExit.rank: expected int"),
        ('{"rank": true}', "RankExit.rank: expected int"),
        ('{"rank": 1}', "missing"),
    ],
)
def test_what_does_not_fit_is_named(document: str, says: str) -> None:
    """A damaged file names type and field, never ends in a KeyError."""
    with pytest.raises(IntegrityError, match=says.replace("[", r"\[")):
        codec.loads(RankExit, document)


def test_an_unknown_state_is_an_error_not_a_guess() -> None:
    """An enum value of the future can't be shown as something else."""
    with pytest.raises(IntegrityError, match="'paused' is not a NodeState"):
        codec.decode(Lease, {"t": 1, "attempt": 1, "state": "paused"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Modern:
    """How the controller's own values are declared."""

    name: str | None = None
    parts: tuple[Event, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


def test_unions_in_todays_spelling_decode_too() -> None:
    """`X | None`, nested dataclasses and free-form values, as the ledger stores them."""
    value = Modern(name="a", parts=(Event(seq=1, t=1.0, kind="k", attempt=1),), extra={"n": [1, None]})
    assert codec.decode(Modern, json.loads(json.dumps(codec.encode(value)))) == value
