"""What faulthandler wrote, read as the place where a rank waits or works."""

from __future__ import annotations

from llmctl.node import stacks
from llmctl.node.hang import BESIDE_STEPS_S, SHORTEST_S, bound_s, summary
from llmctl.wire.progress import Progress, RankStack

DUMP = """Thread 0x00007f21 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait

Current thread 0x00007f20 (most recent call first):
  File "/v/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 2806 in all_reduce
  File "/v/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 81 in wrapper
  File "/w/runs/t-1/code/train.py", line 41 in step
  File "/w/runs/t-1/code/train.py", line 60 in <module>
"""


def nothing(_file: str, _line: int) -> str:
    return ""


def test_the_main_thread_is_the_last_one() -> None:
    """A helper thread that waits says nothing of the rank; the user's own line is what is shown."""
    frames = stacks.main_thread(DUMP)
    assert [frame.line for frame in frames] == [2806, 81, 41, 60]
    assert stacks.where(frames) == "train.py:41 in step"
    assert stacks.waits(frames, nothing)


def test_a_call_of_c_code_is_known_by_its_line() -> None:
    """`work.wait()` has no frame of its own; the line that calls it tells, if it is the innermost one."""
    frames = stacks.main_thread(
        'Current thread 0x1 (most recent call first):\n  File "/a/b.py", line 7 in f\n'
    )
    assert stacks.waits(frames, lambda file, line: "work.wait()" if (file, line) == ("/a/b.py", 7) else "")
    assert not stacks.waits(frames, nothing)
    assert stacks.where(frames) == "a/b.py:7 in f"


def test_no_stack_is_no_waiting() -> None:
    """A file without a frame, or cut short, names nothing and never clears a rank of suspicion."""
    assert stacks.main_thread("Current thread 0x1 (most recent call first):\n  File") == ()
    assert not stacks.waits((), nothing)


def progress(steps: int, longest_s: float, step: int = 5, total: int | None = 10) -> Progress:
    return Progress(rank=0, t=0.0, step=step, total=total, steps=steps, longest_s=longest_s)


def test_the_bound_comes_from_measured_steps_or_from_the_job() -> None:
    """None until enough steps are known and once the last one is done; never below the floor."""
    assert bound_s(None, ()) is None
    assert bound_s(None, (progress(2, 1.0),)) is None
    assert bound_s(None, (progress(9, 1.0),)) == SHORTEST_S
    assert bound_s(None, (progress(9, 1.0), progress(9, 30.0))) == 600.0
    assert bound_s(None, (progress(9, 1.0, step=10),)) is None
    assert bound_s(7.0, (progress(1, 0.0),)) == 7.0
    assert bound_s(7.0, ()) == bound_s(7.0, (progress(9, 1.0, step=10),)) == BESIDE_STEPS_S
    assert bound_s(0.0, (progress(9, 1.0),)) is None


def test_a_host_whose_ranks_all_wait_blames_another() -> None:
    """The culprit is elsewhere: that is said instead of a name."""
    assert summary([RankStack(rank=0, where="x", waits=True)], 61.4) == (
        "hang: no step for 61 s; its ranks wait in a collective for others"
    )
