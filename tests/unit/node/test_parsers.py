"""Pure readers: /proc lines, socket tables, and where a stream of lines may be cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmctl.node import follow, kernel, procs, traces

STAT = "4711 (a) b (c) S 12 4711 4711 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 158832 2 3\n"


def test_a_process_name_with_brackets_and_blanks() -> None:
    """Fields are counted after the last bracket, so that no name can shift them."""
    found = procs.parse_stat(STAT)
    assert found == procs.ProcStat(
        ref=procs.ProcRef(pid=4711, start="158832"), ppid=12, state="S", name="a) b (c"
    )
    assert found.running


def test_descendants_and_ancestors() -> None:
    """Down any depth without the root; up with itself; an orphan of init belongs to nobody."""
    table = {
        pid: procs.ProcStat(ref=procs.ProcRef(pid=pid, start="1"), ppid=ppid, state="S", name="x")
        for pid, ppid in {1: 0, 10: 1, 11: 10, 12: 11, 20: 1}.items()
    }
    assert procs.descendants(10, table) == {11, 12}
    assert procs.ancestors(12, table) == {12, 11, 10, 1}


def test_listening_sockets_only() -> None:
    """Inode and port of LISTEN rows; an established connection is no listener."""
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:A391 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 5555 1 0 100 0\n"
        "   1: 0100007F:A392 0100007F:0016 01 00000000:00000000 00:00000000 00000000  0 0 6666 1 0 100 0\n"
    )
    assert traces.parse_listening(table) == {"5555": 41873}


def test_wait_statuses() -> None:
    """Exit 3 is 3; killed by signal 9 is 137 with its name."""
    assert kernel.exit_code(3 << 8) == (3, None)
    assert kernel.exit_code(9) == (137, "SIGKILL")


@given(st.text(alphabet=st.sampled_from("aä€😀\n\r"), max_size=60), st.integers(1, 80))
def test_pieces_join_to_the_text_wherever_frames_are_cut(text: str, size: int) -> None:
    """Cutting a stream frame by frame loses, repeats and splits no character."""
    data = text.encode()
    size = max(size, 4)
    pieces, offset = [], 0
    while offset < len(data):
        part = data[offset : offset + size]
        last = offset + len(part) == len(data)
        length = follow.whole_part(part, full=len(part) == size, to_end=last)
        assert length > 0
        pieces.append(part[:length].decode())
        offset += length
    assert "".join(pieces) == text


@given(st.binary(min_size=1, max_size=40))
def test_a_running_file_is_cut_at_line_ends(data: bytes) -> None:
    """Before the end only whole lines go out, and all of them."""
    length = follow.whole_part(data, full=False, to_end=False)
    assert data[:length].endswith((b"\n", b"\r", b"")) if length else True
    assert b"\n" not in data[length:]
    assert length == 0 or data[length - 1 : length] in (b"\n", b"\r")
