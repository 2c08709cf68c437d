"""The proof of the order: what it accepts, and that nothing else passes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.controller.collect.proof.findings import Verdict
from llmctl.storage.corpus.order import SampleRef
from llmctl.wire.consumed import read_journal
from tests.unit.collect.runs import Run, corpus, kinds, told


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(folder=tmp_path)


def test_two_attempts_of_other_sizes_are_one_proof(run: Run) -> None:
    """Steps of the first attempt beyond the checkpoint don't count; all others are proven."""
    run.attempt(1, 2, 0, 17, ends=False)
    run.attempt(2, 3, 10, 30, origin=1)
    proof = run.prove()
    assert proof.verdict is Verdict.OK, told(proof)
    assert [(s.attempt, s.start, s.end) for s in proof.stretches] == [(1, 0, 10), (2, 10, 30)]
    assert (proof.start, proof.end, proof.samples) == (0, 30, 150)
    assert [(use.epoch, use.used) for use in proof.uses] == [(0, 59), (1, 59), (2, 32)]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_an_honest_run_is_proven_whatever_happened_to_it(data: st.DataObject) -> None:
    """Any sizes, kills, and resumes from any earlier checkpoint: proven, each step by the right attempt."""
    lengths = data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(lambda x: max(x) > 8))
    manifests = [corpus(lengths)] + ([corpus([40, 9], "d")] if data.draw(st.booleans()) else [])
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder=Path(folder), manifests=manifests, batch=data.draw(st.integers(1, 7)))
        every, committed, truth = data.draw(st.integers(1, 6)), [(0, 0)], {}
        for number in range(1, data.draw(st.integers(1, 4)) + 1):
            start, origin = data.draw(st.sampled_from(committed))
            end = start + data.draw(st.integers(0, 25))
            ends = data.draw(st.booleans())
            run.attempt(
                number,
                data.draw(st.integers(1, 4)),
                start,
                end,
                every=every,
                ends=ends,
                origin=origin or None,
            )
            committed = [one for one in committed if one[0] <= start]
            committed += [(step, number) for step in range(start + 1, end + 1) if step % every == 0]
            reached = end if ends else max(start, end - end % every)
            truth = {step: who for step, who in truth.items() if step < start}
            truth |= dict.fromkeys(range(start, reached), number)
        proof = run.prove()
        found = {step: s.attempt for s in proof.stretches for step in range(s.start, s.end)}
        assert found == truth
        assert proof.verdict is (Verdict.OK if truth else Verdict.INCOMPLETE), told(proof)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_changed_byte_goes_unseen(data: st.DataObject) -> None:
    """One flipped bit anywhere in any journal: no proof, and the rank is named; but the last line end, whose
    loss makes the line one that a killed process left."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder=Path(folder))
        run.attempt(1, 2, 0, 20, ends=data.draw(st.booleans()))
        rank = data.draw(st.integers(0, 1))
        path = run.path(1, rank)
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 2))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        proof = run.prove()
        assert proof.verdict is not Verdict.OK
        assert f"rank {rank} on h{rank}" in told(proof)


def test_damage_is_named_where_it_leaves_nothing_proven(run: Run) -> None:
    """Two lines that run into each other, of a killed attempt: no step is left, and the rank is named."""
    run.attempt(1, 2, 0, 20, ends=False)
    path = run.path(1, 0)
    header, first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + first[:-1] + b"\v" + second)
    proof = run.prove()
    assert (proof.verdict, proof.stretches) == (Verdict.FAILED, ())
    assert "rank 0 on h0: line 2 of its journal is damaged" in told(proof)


@pytest.mark.parametrize("cut", [1, 30, 100])
def test_a_torn_last_line_of_a_killed_process_is_no_damage(run: Run, cut: int) -> None:
    """What was being written when it was killed covers nothing; what lies before is proven."""
    run.attempt(1, 1, 0, 20, ends=False)
    path = run.path(1, 0)
    path.write_bytes(path.read_bytes()[:-cut])
    proof = run.prove()
    assert (proof.verdict, proof.end) == (Verdict.OK, 10)


def test_a_missing_journal_is_incomplete_and_names_the_host(run: Run) -> None:
    """A host that is lost leaves a hole in the proof: neither good nor bad."""
    run.attempt(1, 3, 0, 10)
    run.path(1, 2).unlink()
    proof = run.prove(lost={"h2": "SSH timed out"})
    assert proof.verdict is Verdict.INCOMPLETE
    assert told(proof) == "rank 2 on h2: no journal of attempt 1: SSH timed out"


def test_a_host_that_nobody_heard_of_is_incomplete(run: Run) -> None:
    """A newer attempt may have run there, and have done steps anew that seem to count."""
    run.attempt(1, 2, 0, 10)
    proof = run.prove(lost={"h7": "SSH timed out"})
    assert proof.verdict is Verdict.INCOMPLETE
    assert told(proof) == "h7: no journal of any attempt: SSH timed out"


def test_a_missing_attempt_is_incomplete(run: Run) -> None:
    """The last attempt began with a checkpoint of one of which nothing is left: it is named."""
    run.attempt(1, 1, 0, 20, ends=False)
    run.attempt(3, 1, 10, 20, origin=2)
    proof = run.prove()
    assert proof.verdict is Verdict.INCOMPLETE
    assert told(proof) == "attempt 2 led to step 10 and left no journal"


def test_a_line_that_was_taken_out_is_a_hole(run: Run) -> None:
    """Steps of which one rank says nothing are named."""
    run.attempt(1, 2, 0, 30)
    lines = run.path(1, 1).read_bytes().splitlines(keepends=True)
    run.path(1, 1).write_bytes(b"".join(lines[:2] + lines[3:]))
    proof = run.prove()
    assert proof.verdict is Verdict.INCOMPLETE
    assert told(proof) == "rank 1 on h1: its journal says nothing of steps 10-19"


def test_a_line_that_stands_there_twice_is_seen(run: Run) -> None:
    """Each step is carried out once."""
    run.attempt(1, 2, 0, 30)
    lines = run.path(1, 0).read_bytes().splitlines(keepends=True)
    run.path(1, 0).write_bytes(b"".join(lines[:3] + lines[2:]))
    proof = run.prove()
    assert proof.verdict is Verdict.FAILED
    assert told(proof) == "rank 0 on h0: steps 10-19 stand in its journal twice"


def test_another_ranks_journal_is_not_ones_own(run: Run) -> None:
    """A file under a wrong name proves nothing."""
    run.attempt(1, 2, 0, 10)
    run.path(1, 0).write_bytes(run.path(1, 1).read_bytes())
    proof = run.prove()
    assert proof.verdict is Verdict.FAILED
    assert "rank 0 on h0: its journal differs in rank (1)" in told(proof)


def test_a_skipped_sample_is_named(run: Run) -> None:
    """A loader that leaves one out: which one, where, by whom."""
    run.attempt(1, 2, 0, 20, fault=lambda step, rank, refs: refs[:-1] if (step, rank) == (7, 1) else refs)
    proof = run.prove()
    assert proof.verdict is Verdict.FAILED
    (finding,) = proof.findings
    assert (finding.kind, finding.host, finding.start, finding.end) == ("missing", "h1", 7, 8)
    assert finding.text.startswith("rank 1 on h1: sample ")


def test_a_repeated_sample_is_named_with_the_one_it_replaced(run: Run) -> None:
    """A loader that takes one twice leaves out another."""
    run.attempt(
        1, 2, 0, 20, fault=lambda step, rank, refs: [refs[1], *refs[1:]] if (step, rank) == (7, 1) else refs
    )
    proof = run.prove()
    assert (proof.verdict, kinds(proof)) == (Verdict.FAILED, {"missing", "doubled"})


def test_a_step_that_is_read_again_is_seen(run: Run) -> None:
    """A loader that hangs at a step: its samples are doubled, those of the next are missing."""
    kept: dict[int, list[SampleRef]] = {}

    def stuck(step: int, rank: int, refs: list[SampleRef]) -> list[SampleRef]:
        kept[rank] = refs if step != 8 else kept[rank]
        return kept[rank]

    run.attempt(1, 2, 0, 10, fault=stuck)
    proof = run.prove()
    assert (proof.verdict, kinds(proof)) == (Verdict.FAILED, {"missing", "doubled"})


def test_a_foreign_sample_is_named(run: Run) -> None:
    """One that belongs to none of the covered steps."""
    run.attempt(1, 1, 0, 2, fault=lambda step, _, refs: [SampleRef(0, 3), *refs[1:]] if step == 1 else refs)
    proof = run.prove()
    assert kinds(proof) == {"foreign", "missing"}
    assert "sample 0:3 of step 1 belongs to none of these steps" in told(proof)


def test_another_order_within_a_step_is_named(run: Run) -> None:
    """The same samples in another order: nothing is missing, and still it is not what was promised."""
    run.attempt(1, 1, 0, 10, fault=lambda step, _, refs: refs[::-1] if step == 4 else refs)
    proof = run.prove()
    assert told(proof) == "rank 0 on h0: step 4 has its samples in another order"


def test_a_loader_one_step_ahead_is_seen(run: Run) -> None:
    """Every step has the samples of the next: moved, and those at both ends missing and foreign."""
    run.length = 1  # far from a whole epoch
    ahead: list[list[SampleRef]] = []

    def shifted(step: int, rank: int, refs: list[SampleRef]) -> list[SampleRef]:
        from llmctl.storage.corpus.order import SampleOrder

        order = SampleOrder(run.manifests[0], run.length, run.seed)
        ahead.append(order.samples(step + 1, run.batch, 0, run.batch))
        return ahead[-1]

    run.attempt(1, 1, 0, 10, fault=shifted)
    proof = run.prove()
    assert kinds(proof) == {"order", "missing", "foreign"}
    assert "was used in step 3" in told(proof)
    assert "more samples: order" in told(proof), "a fault of every step does not flood the screen"


def test_a_changed_seed_between_attempts_is_said(run: Run) -> None:
    """Each part is right by itself, the whole is not."""
    run.attempt(1, 1, 0, 20)
    run.seed = 4
    run.attempt(2, 1, 10, 20, origin=1)
    proof = run.prove()
    assert proof.verdict is Verdict.FAILED
    assert told(proof) == "attempt 2 changed seed at step 10: samples may repeat or be left out there"


def test_one_host_with_another_corpus_is_named(run: Run) -> None:
    """A rank whose copy of the manifest differs is not hidden by the others."""
    run.attempt(1, 3, 0, 10)
    other = Run(folder=run.folder, manifests=[corpus([101, 57, 84])])
    kept = {rank: run.path(1, rank).read_bytes() for rank in (0, 2)}
    other.attempt(1, 3, 0, 10)
    for rank, content in kept.items():
        run.path(1, rank).write_bytes(content)
    proof = run.prove()
    assert proof.verdict is Verdict.FAILED
    assert "rank 1 on h1: its journal differs in corpora" in told(proof)


def test_a_journal_of_many_steps_is_small(run: Run) -> None:
    """What was foretold needs no room: the size grows with the flushes, not with the samples."""
    run.batch = 64
    run.attempt(1, 2, 0, 3000, every=1000)
    assert run.path(1, 0).stat().st_size < 2000
    assert [line.samples for line in read_journal(run.path(1, 0).read_bytes()).steps] == [32_000] * 3
    assert run.prove().verdict is Verdict.OK


def test_a_disk_that_is_away_only_delays_the_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What could not be written is said once, and written with the next line."""
    run = Run(folder=tmp_path)
    path = run.path(1, 0)
    journal = run.open(1, world=1, rank=0)
    for step in range(20):
        journal.add(step, run.order().samples(step, run.batch, 0, run.batch))
        if step == 9:
            journal.commit()
    assert capsys.readouterr().out.count("No such file or directory") == 1
    path.parent.mkdir(parents=True)
    journal.close()
    proof = run.prove()
    assert (proof.verdict, proof.end) == (Verdict.OK, 20)
