"""How fast, how far off its clock, how much room."""

from __future__ import annotations

import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from llmctl.errors import NotFoundError
from llmctl.storage.drills.ground import Ground
from llmctl.storage.transfer import copy_in, copy_out

FILES = 4
_TURNS = 15
_PROBE = 1 << 20
_SHARE = 0.2


def latency(ground: Ground) -> str:
    """Medians of small calls, one after the other."""
    store = ground.store
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: store.write_bytes("small", b"x" * 1000),
        "read": lambda: store.read_bytes("small"),
        "look up": lambda: store.info("small"),
        "list": lambda: store.list("tidy"),
    }
    told = []
    for name, call in calls.items():
        median = statistics.median(_timed(call) for _ in range(_TURNS))
        ground.numbers[f"{name.replace(' ', '_')}_s"] = median
        told.append(f"{name} {median * 1e3:.1f} ms")
    return f"{', '.join(told)} (medians of {_TURNS})"


def throughput(ground: Ground) -> str:
    """Files up and down, several at once, hashed on the way as everything is."""
    size = min(ground.size, _fitting(ground))
    with tempfile.TemporaryDirectory(prefix="llmctl-check-") as scratch:
        pairs = []
        for number in range(FILES):
            local = Path(scratch) / str(number)
            local.write_bytes(secrets.token_bytes(size // FILES))
            pairs.append((local, f"speed/{number}"))
        began = time.monotonic()
        sent = copy_in(ground.store, pairs, workers=FILES)
        up = sent.bytes / max(1e-6, time.monotonic() - began)
        back = [(Path(scratch) / "back" / path, path) for _, path in pairs]
        began = time.monotonic()
        copy_out(ground.store, back, known={entry.path: entry for entry in sent.files}, workers=FILES)
        down = sent.bytes / max(1e-6, time.monotonic() - began)
    ground.numbers.update(moved_bytes=sent.bytes, up_bytes_per_s=up, down_bytes_per_s=down)
    return f"up {up / 1e6:.0f} MB/s, down {down / 1e6:.0f} MB/s ({sent.bytes / 1e6:.0f} MB in {FILES} files)"


def clock(ground: Ground) -> str:
    """The store's clock beside ours: clean-ups go by it."""
    before = time.time()
    ground.store.write_bytes("clock", b"")
    after = time.time()
    modified = ground.store.info("clock").modified
    if not modified:
        return "the store tells no times"
    # Some tell whole seconds: what lies in the second of the call is no skew.
    skew = min(0.0, modified + 1 - before) if modified < before else max(0.0, modified - after)
    ground.numbers["clock_skew_s"] = skew
    if abs(skew) < 1:
        return "the store's clock agrees with this machine's, to the second"
    return f"the store's clock is {abs(skew):.0f} s {'behind' if skew < 0 else 'ahead of'} this machine's"


def room(ground: Ground) -> str:
    """Free bytes, where the store tells."""
    try:
        free = ground.store.free_room()
    except NotFoundError:
        free = None
    if free is None:
        return "the store does not tell how much room is left"
    ground.numbers["free_bytes"] = free
    return f"{free / 1e9:.1f} GB free"


def _fitting(ground: Ground) -> int:
    """Bytes that can go up and down in this step's time, judged by a small file."""
    data = secrets.token_bytes(_PROBE)
    took = _timed(lambda: ground.store.write_bytes("probe", data))
    return max(_PROBE, int(_PROBE / took * ground.seconds * _SHARE / 2))


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return max(1e-6, time.perf_counter() - began)
