"""Shares and copies of a state, and how much memory a host has for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmctl.worker.checkpoint.memory import free_host_memory
from llmctl.worker.checkpoint.save import room_for_snapshot
from llmctl.worker.checkpoint.snapshot import Snapshot, own_share
from llmctl.worker.session import Session

ALONE = Session(
    rank=0,
    world=1,
    local_rank=0,
    host="h0",
    device=torch.device("cpu"),
    host_leaders=(0,),
    host_ranks=(0,),
)


@given(sizes=st.lists(st.integers(0, 500), min_size=1, max_size=20), count=st.integers(1, 6))
def test_shares_are_the_whole_and_disjoint(sizes: list[int], count: int) -> None:
    """Every tensor has exactly one owner, and no share is larger than the smallest by more than a tensor."""
    tensors = {f"t{number}": torch.zeros(size) for number, size in enumerate(sizes)}
    shares = [own_share(tensors, index, count) for index in range(count)]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    loads = [sum(tensor.nbytes for tensor in share.values()) for share in shares]
    assert max(loads) - min(loads) <= 4 * max(sizes)


def test_every_rank_keeps_its_piece_of_a_sharded_tensor() -> None:
    """A tensor of a class of its own is no replica: with one owner the others' pieces would be lost."""

    class Sharded(torch.Tensor):
        pass

    tensors = {"plain": torch.zeros(4), "sharded": torch.zeros(4).as_subclass(Sharded)}
    shares = [own_share(tensors, index, 2) for index in (0, 1)]
    assert [sorted(share) for share in shares] == [["plain", "sharded"], ["sharded"]]


def test_copies_stay_as_they_were_and_buffers_are_used_again() -> None:
    """What training changes after `take` is not in the copy; the next one takes the same memory."""
    snapshot, weights = Snapshot(), torch.ones(3)
    snapshot.reserve({"w": weights})
    copy = snapshot.take({"w": weights})["w"]
    weights.fill_(2.0)
    assert copy.eq(1.0).all()
    again = snapshot.take({"w": weights})["w"]
    assert again.data_ptr() == copy.data_ptr()
    assert again.eq(2.0).all()


def test_a_state_that_does_not_fit_is_told() -> None:
    """A copy of 40 TB does not fit here, and the reason has both numbers; one of a few bytes does."""
    huge = {"w": torch.empty(10**13, device="meta")}
    lack = room_for_snapshot(ALONE, huge, 1)
    assert lack is not None
    assert lack.startswith("h0: a copy of the state needs 40000.0 GB, ")
    assert room_for_snapshot(ALONE, {"w": torch.zeros(4)}, 1) is None


@pytest.mark.parametrize(("limit", "free"), [("max", 4000 << 10), ("3000000", 3000000 - 2500000 + 300000)])
def test_a_cgroup_around_this_process_counts(tmp_path: Path, limit: str, free: int) -> None:
    """The kernel's estimate, or what is left below an outer cgroup's limit; its cached files give way."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:   4000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/outer/inner\n")
    outer = tmp_path / "cgroup/outer"
    (outer / "inner").mkdir(parents=True)
    (outer / "memory.max").write_text(f"{limit}\n")
    (outer / "memory.current").write_text("2500000\n")
    (outer / "memory.stat").write_text("anon 1\ninactive_file 300000\n")
    (outer / "inner/memory.max").write_text("max\n")
    assert free_host_memory(tmp_path / "proc", tmp_path / "cgroup") == free


def test_this_machine_has_memory() -> None:
    """The real files of this kernel are understood."""
    assert free_host_memory() > 0
