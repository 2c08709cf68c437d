"""Checkpoints of several hosts in one real Ceph or HDFS, without a shared mount: whole, or not there."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.errors import LlmctlError, NotFoundError
from llmctl.storage.checkpoints import State, committed_steps, read_marker, remove, survey, verify_files
from llmctl.storage.files import Store, is_temporary, open_store
from llmctl.wire.manifests import checkpoint_name
from llmctl.wire.recipe import ModelSpec
from tests.contract.stores import store_uri
from tests.integration.cluster import until
from tests.worker_kit import RECIPE, Cluster, Job, make_corpus

pytestmark = [pytest.mark.stores, pytest.mark.torch, pytest.mark.timeout(600)]

WIDE = ModelSpec(size="tiny", overrides={"layers": 8, "dim": 192, "heads": 4, "kv_heads": 4, "ffn_dim": 512})
"""45 MB of state: the share of each rank goes up in parts."""

SAVES = replace(RECIPE, model=WIDE, checkpoint_every=4, keep=2)


@dataclass(frozen=True, kw_only=True)
class Site:
    """One kind of store, a corpus, and hosts that write their checkpoints there."""

    uri: str
    cluster: Cluster
    lab: Any

    def store(self) -> Store:
        return open_store(self.uri)


@pytest.fixture(params=["s3-http", "hdfs"])
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    uri = store_uri(request, request.param, tmp_path, monkeypatch)
    env = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    cluster = Cluster(
        base=tmp_path,
        corpus=make_corpus(tmp_path / "corpus"),
        ranks=(1, 1),
        checkpoint_uri=uri,
        env={**env, "HOME": str(tmp_path)},
    )
    lab = request.getfixturevalue("hdfs" if request.param == "hdfs" else "ceph")
    return Site(uri=uri, cluster=cluster, lab=lab)


def leftovers(store: Store) -> list[str]:
    """What is in the store but in no committed checkpoint, also what a listing hides."""
    driver, root = store._driver, store._root  # type: ignore[attr-defined]
    hidden = [file.path for file in store._walk("") if is_temporary(file.path)]  # type: ignore[attr-defined]
    unfinished = [name for name, _ in driver.unfinished(root)]
    return hidden + unfinished + [one.folder for one in survey(store) if one.state is not State.COMMITTED]


def check_all(store: Store) -> list[int]:
    """Every checkpoint that a reader can see, read to its last byte; one that is pruned just then is none."""
    seen = []
    for step in committed_steps(store):
        try:
            verify_files(store, checkpoint_name(step), read_marker(store, step))
        except NotFoundError:
            continue
        seen.append(step)
    return seen


def test_hosts_share_a_checkpoint_without_a_mount(site: Site, tmp_path: Path) -> None:
    """Two hosts write one checkpoint and leave nothing on their disks; three ranks of another host go on
    from the one before the last, and take the same curve to the same end."""
    site.cluster.train(replace(SAVES, steps=12))
    store = site.store()
    assert check_all(store) == [8, 12]
    names = {entry.path for entry in read_marker(store, 12).files}
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata"} <= names
    assert leftovers(store) == []
    for host in (0, 1):
        assert not list(Path(site.cluster.run_dir(host).checkpoints).rglob("*.distcp"))
    remove(store, checkpoint_name(12))
    other = replace(site.cluster, base=tmp_path / "other", ranks=(3,), attempt=2)
    other.train(replace(SAVES, steps=12))
    assert [line["step"] for line in other.lines()] == [9, 10, 11, 12]
    assert other.losses() == pytest.approx(site.cluster.losses()[8:], abs=2e-5)
    assert check_all(store) == [8, 12]


def kill_when(job: Job, moment: Callable[[], bool]) -> None:
    """kill -9 every rank as soon as `moment` has come."""
    try:
        end = time.monotonic() + 90
        while not moment():
            assert all(process.poll() is None for process in job.processes), job.results()
            assert time.monotonic() < end
    finally:
        for process in job.processes:
            process.send_signal(signal.SIGKILL)
        job.results()


def test_killed_in_the_middle_of_an_upload(site: Site) -> None:
    """kill -9 of all ranks while files are being sent, while a checkpoint waits for its marker, and at any
    moment: readers see whole checkpoints only; the next attempt goes on from the newest and leaves no rest
    of the dead, no open upload and no temporary file among it."""
    store = site.store()
    driver, root = store._driver, store._root  # type: ignore[attr-defined]
    endless = replace(SAVES, steps=100_000, checkpoint_every=2)

    def sending() -> bool:
        # What S3 gets in one request can't be seen there: then the file on the host tells.
        hidden = any(is_temporary(file.path) for file in store._walk(""))  # type: ignore[attr-defined]
        here = any(Path(site.cluster.run_dir(host).checkpoints).rglob("*.distcp") for host in (0, 1))
        return hidden or bool(driver.unfinished(root)) or here

    def unmarked() -> bool:
        found = survey(store)
        return len(found) > 1 and found[-1].state is State.UNFINISHED and found[-1].files > 1

    def anywhen() -> bool:
        if not committed_steps(store):
            return False
        time.sleep(random.random())  # noqa: S311 - any moment is as good as another
        return True

    for attempt, moment in enumerate((sending, unmarked, anywhen), 1):
        before = check_all(store)
        kill_when(replace(site.cluster, attempt=attempt).start(endless), moment)
        seen = check_all(store)
        assert max(seen, default=0) >= max(before, default=0)
    newest = max(check_all(store))
    last = replace(site.cluster, attempt=4)
    last.train(replace(SAVES, steps=newest + 3, checkpoint_every=2))
    assert last.lines()[0]["step"] == newest + 1
    assert max(check_all(store)) == newest + 3
    assert leftovers(store) == []


@pytest.mark.stores_fault
@pytest.mark.parametrize("site", ["s3-http", pytest.param("hdfs", marks=pytest.mark.slow)], indirect=True)
def test_the_store_goes_away_and_comes_back(site: Site) -> None:
    """The gateway or name node dies before a save: training goes on, says why there is no checkpoint, and
    keeps the next one once the store is back. The job succeeds."""
    recipe = replace(SAVES, steps=60, checkpoint_every=20)
    job = site.cluster.start(recipe)
    try:
        until(site.cluster.lines, what="the first step")
        for process in job.processes:
            process.send_signal(signal.SIGSTOP)
        assert site.cluster.lines()[-1]["step"] < 20
        daemon = getattr(site.lab, "rgw", None) or site.lab.namenode
        daemon.kill9()
        for process in job.processes:
            process.send_signal(signal.SIGCONT)
        (failed,) = until(
            lambda: site.cluster.lines("checkpoint-failed"), within=280, what="the failure is told"
        )
        assert site.cluster.lines()[-1]["step"] == 40, "trained on until the next save, which waits for this"
    finally:
        site.lab.restore()
        results = job.results()
    assert [code for code, _, _ in results] == [0, 0], results
    assert failed["step"] == 20
    assert site.uri in failed["error"]
    assert any("training goes on without it" in line["text"] for line in site.cluster.lines("note"))
    assert max(patiently(lambda: check_all(site.store()))) == 60


def patiently(function: Callable[[], Any]) -> Any:
    """The result, once the servers are through with their recovery."""
    end = time.monotonic() + 60
    while True:
        try:
            return function()
        except LlmctlError:
            if time.monotonic() > end:
                raise
