"""The promises of `base.Transport`, kept by every implementation alike."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmctl.controller.transport.base import Stream, Transport
from llmctl.errors import DeadlineError, HostUnreachableError, RemoteCommandError
from tests.contract.transports import KINDS, Far, open_far

LONG = 30.0


@pytest.fixture(params=KINDS)
def far(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Far]:
    connections, far = open_far(request.param, request, tmp_path)
    with connections:
        yield far


@pytest.fixture
def transport(far: Far) -> Transport:
    return far.transport


def sh(transport: Transport, script: str, *args: str, stdin: bytes = b"", deadline_s: float = LONG):  # type: ignore[no-untyped-def]
    argv = ["sh", "-c", script, "sh", *args]
    return transport.run(argv, stdin=stdin, deadline_s=deadline_s, stage="test")


def test_output_error_and_status_are_apart(transport: Transport) -> None:
    """stdout, stderr and the exit status come back as they are."""
    done = sh(transport, "echo out; echo err >&2; exit 3")
    assert (done.code, done.stdout, done.stderr, done.signal) == (3, b"out\n", b"err\n", None)
    assert not done.ok


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (15, "SIGTERM"), (6, "SIGABRT")])
def test_death_by_signal_is_told(transport: Transport, number: int, name: str) -> None:
    """A killed command is 128+n and the signal's name, never a lost connection."""
    done = sh(transport, f"kill -{number} $$")
    assert (done.code, done.signal) == (128 + number, name)


def test_missing_command(transport: Transport) -> None:
    """A command that isn't there is status 127, as in a shell."""
    assert transport.run(["no-such-command"], deadline_s=LONG, stage="test").code == 127


@pytest.mark.parametrize(
    "argument",
    ["", " ", "a b", "it's", '"', "$HOME", "`id`", "new\nline", "\\", "*", "-n", "é ü", "a;b", "!x", "~"],
)
def test_odd_arguments_arrive_unchanged(transport: Transport, argument: str) -> None:
    """No shell on the way reads anything into an argument."""
    done = transport.run(["printf", "%s|", argument, "end"], deadline_s=LONG, stage="test")
    assert done.stdout.decode() == f"{argument}|end|"


def test_stderr_flood_does_not_block(transport: Transport) -> None:
    """10 MB on stderr before stdout: no deadlock; the end of stderr is kept."""
    done = sh(transport, "head -c 10000000 /dev/zero | tr '\\0' e >&2; echo last >&2; echo out")
    assert (done.code, done.stdout) == (0, b"out\n")
    assert done.stderr.endswith(b"eelast\n")
    assert len(done.stderr) <= 64 << 10


def test_fifty_megabytes_each_way(transport: Transport) -> None:
    """Large input and output at once arrive whole."""
    data = bytes(range(256)) * (50 << 12)
    assert transport.run(["cat"], stdin=data, deadline_s=120, stage="test").stdout == data


def test_input_from_an_iterable(transport: Transport) -> None:
    """stdin may be made piece by piece."""
    pieces = (b"%d\n" % n for n in range(10_000))
    done = transport.run(["tail", "-n", "1"], stdin=pieces, deadline_s=LONG, stage="test")
    assert done.stdout == b"9999\n"


def test_unread_input_is_no_error(transport: Transport) -> None:
    """A command that ends without reading its input is judged by its status."""
    done = transport.run(["true"], stdin=b"x" * (20 << 20), deadline_s=LONG, stage="test")
    assert done.code == 0


def test_no_input_is_end_of_file(transport: Transport) -> None:
    """Without stdin a reading command ends at once."""
    assert transport.run(["cat"], deadline_s=LONG, stage="test").code == 0


def test_deadline(transport: Transport) -> None:
    """A command that takes too long is a DeadlineError with host and stage; the next one works."""
    before = time.monotonic()
    with pytest.raises(DeadlineError) as caught:
        transport.run(["sleep", "60"], deadline_s=0.5, stage="probe")
    assert time.monotonic() - before < 30
    assert (caught.value.host, caught.value.stage) == ("far", "probe")
    assert sh(transport, "echo on").stdout == b"on\n"


def test_deadline_of_a_write_that_nobody_reads(transport: Transport) -> None:
    """Writing to a command that does not read ends at the deadline."""
    with transport.open(["sleep", "60"], stage="push") as stream, pytest.raises(DeadlineError):
        stream.write(b"x" * (64 << 20), deadline_s=0.5)


def test_deadline_of_a_wait(transport: Transport) -> None:
    """Waiting for a command that goes on ends at the deadline."""
    with transport.open(["sleep", "60"], stage="test") as stream, pytest.raises(DeadlineError):
        stream.wait(deadline_s=0.3)


def test_stream_talks_both_ways(transport: Transport) -> None:
    """Input and output of one command alternate; EOF, then the status with its stderr."""
    script = "while read -r line; do echo got $line; done; echo bye >&2; exit 5"
    with transport.open(["sh", "-c", script], stage="test") as stream:
        for word in (b"one", b"two"):
            stream.write(word + b"\n", deadline_s=LONG)
            assert stream.read(100, deadline_s=LONG) == b"got " + word + b"\n"
        stream.end_input()
        assert stream.read(100, deadline_s=LONG) == b""
        done = stream.wait(deadline_s=LONG)
    assert (done.code, done.stderr) == (5, b"bye\n")


def write_for_long(stream: Stream) -> None:
    for _ in range(100):
        stream.write(b"x" * 100_000, deadline_s=LONG)


def test_write_after_the_end_says_so(transport: Transport) -> None:
    """Writing to a command that has ended is an error of ours, not a broken pipe."""
    with transport.open(["true"], stage="test") as stream:
        stream.wait(deadline_s=LONG)
        with pytest.raises(RemoteCommandError):
            write_for_long(stream)


def test_many_commands_at_once(transport: Transport) -> None:
    """24 threads share the connection: at most eight run at once, all are served."""
    script = "sleep 0.05; echo $1"
    with ThreadPoolExecutor(24) as threads:
        done = list(threads.map(lambda n: sh(transport, script, str(n)), range(24)))
    assert [d.stdout for d in done] == [b"%d\n" % n for n in range(24)]


def test_closed_streams_free_their_slots(transport: Transport) -> None:
    """Eight streams take all slots; a ninth waits for its deadline; a closed one makes room."""
    streams = [transport.open(["cat"], stage="test") for _ in range(8)]
    try:
        with pytest.raises(DeadlineError, match="no free channel"):
            transport.open(["true"], stage="test", deadline_s=0.3)
        streams.pop().close()
        assert sh(transport, "echo in").stdout == b"in\n"
    finally:
        for stream in streams:
            stream.close()
    for _ in range(30):
        with transport.open(["cat"], stage="test"):
            pass


def test_closed_stream_of_a_running_command_frees_its_slot(transport: Transport) -> None:
    """Commands that outlive their streams don't use the connection up for ever."""
    for _ in range(12):
        with transport.open(["sh", "-c", "sleep 2"], stage="test", deadline_s=LONG):
            pass
    assert sh(transport, "echo in").stdout == b"in\n"


def test_close_is_heard_by_the_command(far: Far) -> None:
    """A command whose stream is closed sees the end of its input."""
    mark = f"{far.scratch}/ended"
    with far.transport.open(["sh", "-c", "cat; echo done >$0", mark], stage="test") as stream:
        stream.write(b"x", deadline_s=LONG)
        assert stream.read(1, deadline_s=LONG) == b"x"
        stream.end_input()
        stream.read(1, deadline_s=LONG)
    deadline = time.monotonic() + LONG
    while not far.path(mark).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert far.path(mark).exists()


def test_starts_at_home_with_a_login_s_environment(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working folder is HOME, and nothing of our own environment leaks."""
    monkeypatch.setenv("LLMCTL_TEST_LEAK", "leaked")
    done = sh(transport, 'cd; home=$(pwd -P); cd "$OLDPWD"; [ "$(pwd -P)" = "$home" ] && env')
    assert done.code == 0
    assert b"LLMCTL_TEST_LEAK" not in done.stdout
    assert b"HOME=" in done.stdout


def test_own_session_outlives_the_connection(far: Far) -> None:
    """What was started with its own session goes on when the connection is closed."""
    mark = f"{far.scratch}/alive"
    script = 'setsid sh -c \'sleep 0.5; echo on >"$0"\' "$1" </dev/null >/dev/null 2>&1 &'
    assert sh(far.transport, script, mark).ok
    far.transport.close()
    deadline = time.monotonic() + LONG
    while not far.path(mark).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert far.path(mark).exists()


def test_closed_transport_refuses(transport: Transport) -> None:
    """After close every call is a HostUnreachableError."""
    transport.close()
    with pytest.raises(HostUnreachableError):
        sh(transport, "true")


def test_no_thread_is_left(transport: Transport) -> None:
    """Finished commands leave no threads of theirs behind."""
    sh(transport, "true")
    before = threading.active_count()
    for _ in range(10):
        sh(transport, "echo x", stdin=b"y" * 100_000)
    deadline = time.monotonic() + LONG
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_close_from_another_thread_ends_a_read(transport: Transport) -> None:
    """A reader whose stream is closed by another thread sees the end."""
    stream = transport.open(["sleep", "60"], stage="test")
    threading.Timer(0.2, stream.close).start()
    assert stream.read(10, deadline_s=LONG) == b""


def test_python_of_the_tests_runs_there(transport: Transport) -> None:
    """Binary output of a real program arrives byte by byte as it is."""
    script = "import sys; sys.stdout.buffer.write(bytes(range(256)))"
    done = transport.run([sys.executable, "-c", script], deadline_s=LONG, stage="test")
    assert done.stdout == bytes(range(256))
