"""Names that end up in paths and shells are safe by their form."""

from __future__ import annotations

import pytest

from llmctl.wire.layout import RUN_ID, HostLayout


@pytest.mark.parametrize("run_id", ["demo-7f3a", "a-0123456789ab", "x1-y2-0a1b2c"])
def test_run_ids_that_we_make(run_id: str) -> None:
    """A job's name and some hex digits."""
    assert RUN_ID.match(run_id)


@pytest.mark.parametrize(
    "run_id", ["", "..", "demo", "demo-7f3a/../x", "Demo-7f3a", "demo-7f3a\n", "-7f3a", "a b-7f3a"]
)
def test_what_is_no_run_id(run_id: str) -> None:
    """Nothing that leaves the runs folder, ends a line or starts like an option."""
    assert not RUN_ID.match(run_id)


def test_everything_of_a_run_lies_below_its_folder() -> None:
    """Removing one folder removes a run; nothing is written beside it."""
    run = HostLayout("/w").run("demo-7f3a")
    attempt = run.attempt(2)
    paths = [run.node_spec, run.code, run.lease, run.events, run.stop_request, run.checkpoints]
    paths += [attempt.launcher_log, attempt.metrics, attempt.exit, attempt.rank_log(5), attempt.rank_exit(5)]
    assert all(path.startswith("/w/runs/demo-7f3a/") for path in paths)
    assert len(set(paths)) == len(paths)
