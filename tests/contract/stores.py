"""Where the stores under test are: new, empty roots in each kind of them."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest


def store_uri(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A URI below which nothing is, with the environment set so that it can be used."""
    name = secrets.token_hex(6)
    if kind in ("hdfs", "webhdfs"):
        hdfs = request.getfixturevalue("hdfs")
        return f"{kind}://{hdfs.rpc if kind == 'hdfs' else hdfs.web}/{name}"
    if kind in ("s3-http", "s3-https"):
        ceph = request.getfixturevalue("ceph")
        for variable, value in ceph.environment(https=kind == "s3-https").items():
            monkeypatch.setenv(variable, value)
        return f"s3://{ceph.bucket}/{name}"
    if kind == "cephfs":
        return str(request.getfixturevalue("cephfs") / name)
    root = tmp_path / "store"
    return {"path": str(root), "file": f"file://{root}", "memory": f"memory://{name}/root"}[kind]
