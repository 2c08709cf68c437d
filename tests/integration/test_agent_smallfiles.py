"""Files that are never half-written, and readings from a file's end, against plain Python."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmctl.node import atomic, tail

LINES = st.lists(st.binary(max_size=9).map(lambda raw: raw.replace(b"\n", b"")), max_size=30)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@SAME_FOLDER
@given(lines=LINES, ends=st.booleans(), count=st.integers(0, 35))
def test_last_lines_are_those_of_the_whole_file(
    tmp_path: Path, lines: list[bytes], ends: bool, count: int
) -> None:
    """The offset of the last n lines is where splitting the whole file puts it."""
    data = b"\n".join(lines) + (b"\n" if ends and lines else b"")
    path = tmp_path / "log"
    path.write_bytes(data)
    whole = _split(data)
    expected = b"".join(whole[len(whole) - count :]) if 0 < count <= len(whole) else data if count else b""
    assert data[tail.offset_of_last_lines(str(path), count) :] == expected
    assert list(tail.lines_backwards(str(path))) == [line for line in reversed(data.split(b"\n")) if line]


def test_lines_longer_than_a_block(tmp_path: Path) -> None:
    """Lines that span many blocks come back whole; a bound on bytes leaves out what is before it."""
    lines = [bytes([65 + n]) * 100_000 for n in range(5)]
    path = tmp_path / "log"
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert list(tail.lines_backwards(str(path))) == lines[::-1]
    assert list(tail.lines_backwards(str(path), limit=150_000)) == lines[:-2:-1]
    assert tail.offset_of_last_lines(str(path), 2) == 3 * 100_001


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    """Nothing there is nothing to read, not an error."""
    path = str(tmp_path / "none")
    assert list(tail.lines_backwards(path)) == []
    assert (tail.last_lines(path, 3), tail.offset_of_last_lines(path, 3)) == ((), 0)


def test_the_first_verdict_stays(tmp_path: Path) -> None:
    """Of two that write the same record only the first is believed, and no spare file remains."""
    path = tmp_path / "exit.json"
    first, second = (atomic.Reserved(str(path), 4096) for _ in range(2))
    assert first.commit("first")
    assert not second.commit("second")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("exit.json", "first")]


def test_a_failed_write_leaves_the_old_text(tmp_path: Path) -> None:
    """A write that can't be finished changes nothing and leaves nothing beside."""
    target = tmp_path / "folder"
    target.mkdir()
    try:
        atomic.write(str(target), "text")
    except OSError:
        assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    else:
        raise AssertionError("a folder was replaced by a file")


def _split(data: bytes) -> list[bytes]:
    """By newlines only."""
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])
