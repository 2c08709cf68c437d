"""Follow: every byte once, in whole lines, from any position, and never a process that lingers."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmctl.wire import codec
from llmctl.wire.records import FollowRequest, Frame
from llmctl.wire.states import NodeState
from tests.integration.agent_host import AgentHost, frames, hosts, until

RUN = "follow-0a1b"
LOG = "attempt-1/rank-0.log"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AgentHost]:
    yield from hosts(tmp_path)


def text_of(received: list[Frame], name: str) -> str:
    return "".join(frame.text for frame in received if frame.file == name)


def write_log(host: AgentHost, content: bytes) -> None:
    """A finished run whose rank 0 has written just this."""
    script = f"import os\nos.write(1, {content!r})\n"
    host.start(host.spec(RUN, script, nproc=1))
    host.ended(RUN)


def follow_in_process(host: AgentHost, request: FollowRequest) -> subprocess.Popen[bytes]:
    command = [host.python, host.pyz, "follow", RUN, "--workdir", host.layout.workdir]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(codec.dumps(request).encode())
    process.stdin.close()
    return process


def test_follow_sends_all_files_and_ends(host: AgentHost) -> None:
    """A live run's events, metrics and logs arrive whole; the last frame says that no more follow."""
    script = """
import json, os, time
for step in range(20):
    print("line", step, flush=True)
    with open(os.environ["LLMCTL_METRICS"], "a") as file:
        file.write(json.dumps({"kind": "step", "step": step}) + "\\n")
    time.sleep(0.02)
print("no newline", end="")
"""
    host.start(host.spec(RUN, script))
    received = host.follow(RUN, FollowRequest(logs=True))
    assert received[-1].end
    assert received[-1].state is NodeState.SUCCEEDED
    assert [frame.end for frame in received[:-1]].count(True) == 0
    root = Path(host.run(RUN).root)
    names = ["events.jsonl", "attempt-1/metrics.jsonl", LOG, "attempt-1/rank-1.log"]
    for name in names:
        assert text_of(received, name) == (root / name).read_text(), name
    assert text_of(received, LOG).endswith("line 19\nno newline")


def test_resume_from_every_offset_gives_the_same_bytes(host: AgentHost) -> None:
    """What a reader has plus what it then gets is the file, wherever the connection was cut."""
    write_log(host, b"".join(b"%d\n" % number for number in range(25)) + b"end")
    whole = Path(host.run(RUN).attempt(1).rank_log(0)).read_text()
    for offset in range(0, len(whole) + 1, 3):
        received = host.follow(RUN, FollowRequest(offsets={LOG: offset}, logs=True))
        assert whole[:offset] + text_of(received, LOG) == whole, offset


def test_resume_from_each_frame_is_exact_for_any_text(host: AgentHost) -> None:
    """Frames of huge lines cut no character, so that joined pieces are the text, also after a resume."""
    content = ("ä€😀x" * 30_000 + "\n" + "short\r\n" + "€" * 70_000).encode()
    write_log(host, b"")
    Path(host.run(RUN).attempt(1).rank_log(0)).write_bytes(content)
    received = [f for f in host.follow(RUN, FollowRequest(logs=True)) if f.file == LOG]
    assert len(received) > 3
    assert text_of(received, LOG).encode() == content
    assert all(len(frame.text.encode()) <= 64 * 1024 for frame in received)
    done = received[1]
    rest = host.follow(RUN, FollowRequest(logs=True, offsets={LOG: done.offset}))
    assert (received[0].text + done.text + text_of(rest, LOG)).encode() == content


def test_binary_junk_keeps_frames_and_offsets_whole(host: AgentHost) -> None:
    """Every byte counts in the offset, whatever it decodes to, and each frame is one line of JSON."""
    junk = bytes(range(256)) * 700
    write_log(host, b"")
    Path(host.run(RUN).attempt(1).rank_log(0)).write_bytes(junk)
    received = [f for f in host.follow(RUN, FollowRequest(logs=True)) if f.file == LOG]
    assert received[-1].offset == len(junk)
    assert text_of(received, LOG) == junk.decode(errors="replace")


def test_ranks_tail_and_attempt_choose(host: AgentHost) -> None:
    """Only the asked ranks' logs and no launcher's, from their last lines on; events from the start."""
    script = "import os\nfor n in range(9): print(os.environ['RANK'], n)"
    host.start(host.spec(RUN, script, nproc=3))
    host.ended(RUN)
    (Path(host.run(RUN).root) / "attempt-1/launcher.log").write_text("a launcher's words\n")
    received = host.follow(RUN, FollowRequest(logs=True, ranks=(1,), tail=2, until_end=False))
    assert {frame.file for frame in received} == {"events.jsonl", "attempt-1/rank-1.log", ""}
    assert text_of(received, "attempt-1/rank-1.log") == "1 7\n1 8\n"
    assert text_of(received, "events.jsonl").startswith('{"schema":1,"seq":1,')
    nothing = host.follow(RUN, FollowRequest(logs=True, tail=0, attempt=7, until_end=False))
    assert {frame.file for frame in nothing} == {"events.jsonl", ""}


def test_a_half_line_waits_for_its_end(host: AgentHost) -> None:
    """While the node runs only whole lines are sent; a progress bar's carriage return ends a line."""
    script = """
import os, time
os.write(1, b"10%\\r20%\\rha")
while not os.path.exists("go"):
    time.sleep(0.01)
os.write(1, b"lf\\n")
"""
    host.start(host.spec(RUN, script, nproc=1))
    until(lambda: host.log(RUN, 0).endswith("ha"))
    now = host.follow(RUN, FollowRequest(logs=True, until_end=False))
    assert text_of(now, LOG) == "10%\r20%\r"
    (Path(host.run(RUN).code) / "go").touch()
    last = [frame for frame in now if frame.file == LOG][-1]
    rest = host.follow(RUN, FollowRequest(logs=True, offsets={LOG: last.offset}))
    assert text_of(rest, LOG) == "half\n"


def test_a_silent_run_gets_heartbeats(host: AgentHost) -> None:
    """With nothing to say a frame still comes within two seconds, carrying the state."""
    host.start(host.spec(RUN, "import time; time.sleep(300)", nproc=1))
    until(lambda: host.status(RUN).state is NodeState.RUNNING)
    with follow_in_process(host, FollowRequest()) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if not codec.loads(Frame, line).file)
        assert codec.loads(Frame, line).state is NodeState.RUNNING
        process.kill()


def test_follow_does_not_linger_without_a_reader(host: AgentHost) -> None:
    """When its stdout breaks the command ends by itself, although the run goes on in silence."""
    host.start(host.spec(RUN, "import time; time.sleep(300)", nproc=1))
    with follow_in_process(host, FollowRequest()) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=10) == 0


def test_a_slow_reader_loses_nothing(host: AgentHost) -> None:
    """A reader that pauses while the pipe is full still gets every byte."""
    content = b"".join(b"line %d\n" % number for number in range(60_000))
    write_log(host, content)
    with follow_in_process(host, FollowRequest(logs=True)) as process:
        assert process.stdout is not None
        select.select([process.stdout], [], [], 30)
        time.sleep(0.5)
        received = frames(process.stdout.read())
    assert text_of(received, LOG).encode() == content
    assert os.WEXITSTATUS(process.returncode) == 0


def test_follow_ends_when_the_agent_has_died(host: AgentHost) -> None:
    """A killed agent ends the stream with the failed state, not with a silence."""
    import signal

    reply = host.start(host.spec(RUN, "import time; print('up'); time.sleep(300)", nproc=1))
    with follow_in_process(host, FollowRequest(logs=True)) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if codec.loads(Frame, line).file == LOG:
                break
        os.kill(reply.agent_pid, signal.SIGKILL)
        last = codec.loads(Frame, process.stdout.read().splitlines()[-1])
    assert last.end
    assert last.state is NodeState.FAILED
