"""Many files: are they all listed, and do unfinished ones go?"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from llmctl.storage.drills.ground import THREADS, Ground, hold
from llmctl.storage.files import temporary_name

MANY = 1100
"""More than most stores tell in one answer."""

_SHARE = 0.25
_BATCH = 4 * THREADS


def listing(ground: Ground) -> str:
    """All names, however many answers that takes; fewer of them where the store is slow."""
    store, end = ground.store, ground.until(_SHARE)
    names = [f"many/{number:05}" for number in range(MANY)]
    made = 0
    with ThreadPoolExecutor(THREADS) as threads:
        while made < MANY and time.monotonic() < end:
            batch = names[made : made + _BATCH]
            list(threads.map(lambda name: store.write_bytes(name, b""), batch))
            made += len(batch)
    began = time.monotonic()
    listed = [file.path for file in store.list("many")]
    took = time.monotonic() - began
    store.delete("many")
    hold(listed == names[:made], f"of {made} files {len(listed)} are listed")
    hold(store.list("many") == [], "a deleted folder still has files")
    ground.numbers.update(listed_files=made, list_s=took)
    note = "" if made == MANY else "; no time for more, so a second page of a listing was not reached"
    return f"{made} files written, listed in {took:.2f} s and deleted{note}"


def cleanup(ground: Ground) -> str:
    """What a killed writer leaves is hidden, goes with a clean-up, and takes nothing else along."""
    store = ground.store
    left = temporary_name("a")
    store.write_bytes("tidy/a", b"whole")
    store.write_bytes(f"tidy/{left}", b"half")
    hold([file.path for file in store.list("tidy")] == ["tidy/a"], "an unfinished file is listed")
    hold(store.cleanup(3600.0) == (), "a clean-up took what is new")
    removed = store.cleanup(-3600.0)  # whatever the store's clock says
    hold(removed == (f"tidy/{left}",), f"a clean-up removed {', '.join(removed) or 'nothing'}")
    hold(store.read_bytes("tidy/a") == b"whole", "a clean-up took a whole file")
    return "unfinished files are hidden, and a clean-up removes them and nothing else"
