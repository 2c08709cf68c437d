"""`python:` may be a script that starts Python in a container: agent, ranks, pull and stop work with it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, until
from tests.lab.hosts import Lab

pytestmark = pytest.mark.hosts

IMAGE = """#!/bin/sh
exec unshare --mount sh -ec 'R=$1; shift; mkdir -p "$R"; mount --rbind / "$R"; mount --bind {env} "$R/mnt"
exec chroot "$R" /mnt/bin/python "$@"' image /tmp/image-root "$@"
"""
"""A root of its own with a Python at /mnt/bin, where the host has nothing: what an image's path is like."""

SCRIPT = """
import os, sys, time, torch
import torch.distributed as dist
dist.init_process_group("gloo")
t = torch.ones(1)
dist.all_reduce(t)
print("sum", float(t), "by", sys.executable, flush=True)
if "wait" in sys.argv: time.sleep(600)
dist.destroy_process_group()
"""


def test_ranks_run_inside_and_everything_else_finds_them(tmp_path: Path, lab: Lab) -> None:
    """The agent starts the ranks inside, once; logs and pull work from outside, and stop leaves nothing."""
    cluster = Cluster(folder=tmp_path / "c", lab=lab)
    wrapper = f"/root/{cluster.workname}/inimage"
    for name in lab.names[:2]:
        path = lab.path(name, wrapper)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(IMAGE.format(env=sys.prefix))
        path.chmod(0o755)
    cluster.write_hosts(a={"python": wrapper}, b={"python": wrapper})
    found = cluster.json("hosts", "check")["hosts"]
    assert [found[name]["facts"]["python"]["executable"] for name in "ab"] == ["/mnt/bin/python"] * 2

    cluster.write_script(SCRIPT, train={"backend": "gloo"})
    cluster.run("train")
    run = cluster.json("status")["runs"][0]["run_id"]
    logs = cluster.run("logs", run).stdout
    assert logs.count("sum 2.0 by /mnt/bin/python") == 2
    shutil.rmtree(cluster.folder / "llmctl-runs", ignore_errors=True)
    assert "not pulled" not in cluster.run("pull", run).stderr

    waiting = cluster.start("--", "wait")
    until(
        lambda: cluster.run("logs", waiting).stdout.count("sum 2.0") == 2,
        within=180.0,
        what="both ranks wait",
    )
    cluster.run("stop", waiting)
    assert not cluster.processes(waiting)
