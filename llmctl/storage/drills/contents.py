"""Is what was written there, at once, whole, and under its own name?"""

from __future__ import annotations

import secrets

from llmctl.errors import LlmctlError, NotFoundError
from llmctl.storage.drills.ground import Ground, hold

NAMES = ("a b", "ü-ñ-漢", "what?", "#1", "100%", "%41", "-x", "a&b=c", "a+b", "[x]*", "deep/er/still")
TURNS = 10


def write_and_read(ground: Ground) -> str:
    """Also nothing at all, and what is larger than one request of most drivers."""
    sizes = (0, 1, 300_000)
    for size in sizes:
        data = secrets.token_bytes(size)
        ground.store.write_bytes("first", data)
        hold(ground.store.read_bytes("first") == data, f"{size} bytes came back as others")
    return "what was written came back, 0 to 300 kB"


def see_at_once(ground: Ground) -> str:
    """Read-after-write, after a replacement and after a deletion: no stale answer."""
    store = ground.store
    for turn in range(TURNS):
        path, data = f"seen-{turn}", secrets.token_bytes(1000)
        store.write_bytes(path, b"before")
        store.write_bytes(path, data)
        hold(store.read_bytes(path) == data, "a file that was just replaced is read as the old one")
        hold(path in [file.path for file in store.list()], "a file that was just written is not listed")
        store.delete(path)
        hold(not store.exists(path), "a file that was just deleted is still there")
    return f"new, replaced and deleted files seen at once, in {TURNS} of {TURNS} turns"


def names(ground: Ground) -> str:
    """A name means itself in every call."""
    store = ground.store
    wrong = []
    for name in NAMES:
        path = f"names/{name}"
        try:
            store.write_bytes(path, name.encode())
            kept = store.read_bytes(path) == name.encode()
        except LlmctlError:
            kept = False
        if not kept:
            wrong.append(name)
    listed = {file.path.removeprefix("names/") for file in store.list("names")}
    wrong += [name for name in NAMES if name not in listed and name not in wrong]
    hold(not wrong, f"names that do not survive: {', '.join(wrong)}")
    store.delete("names")
    hold(store.list("names") == [], "a deleted folder still has files")
    return f"{len(NAMES)} odd names survive (spaces, unicode, ? # % + * [ ])"


def read_in_parts(ground: Ground) -> str:
    """Ranges of a file, as the loader reads them."""
    data = secrets.token_bytes(5_000_000)
    ground.store.write_bytes("parts", data)
    with ground.store.open_read("parts") as stream:
        for start in (4_999_990, 0, 1_234_567, 4_194_300):
            stream.seek(start)
            hold(stream.read(1000) == data[start : start + 1000], f"other bytes at {start}")
    try:
        ground.store.read_bytes("not there")
    except NotFoundError:
        return "ranges are right, and a missing file is called missing"
    hold(False, "a missing file was read")
    return ""


def nothing_left(ground: Ground) -> str:
    """The drill's own folder is gone."""
    left = ground.store.list()
    hold(not left, f"{len(left)} files of the drill can't be removed, {ground.store.uri} first")
    return "nothing of the drill is left"
