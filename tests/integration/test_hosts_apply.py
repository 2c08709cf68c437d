"""`hosts apply` on real hosts: an edit of hosts.yaml costs what it changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.cluster import Cluster
from tests.lab.hosts import Lab

pytestmark = pytest.mark.hosts


def edits(found: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["edit"] for one in found["changes"]}


def test_an_edit_is_applied_to_the_hosts_that_it_is_about(tmp_path: Path, lab: Lab) -> None:
    """New once; then only what changed is asked. A renamed host stays drained, a removed one is forgotten."""
    cluster = Cluster(folder=tmp_path / "c", lab=lab)
    first = cluster.json("hosts", "apply")
    assert edits(first) == {"a": "new", "b": "new"}
    assert set(first["hosts"]) == {"a", "b"}
    lab.freeze("node0")
    assert "2 hosts as before, not asked" in cluster.run("hosts", "apply").stdout
    cluster.write_hosts(b={"slots": 2, "labels": {"rack": "r7"}})
    assert "~ b  slots 1 -> 2 · label rack - -> r7" in cluster.run("hosts", "apply", "--dry-run").stdout
    changed = cluster.json("hosts", "apply")
    assert edits(changed) == {"a": "same", "b": "changed"}
    assert set(changed["hosts"]) == {"b"}
    lab.thaw("node0")

    cluster.run("hosts", "drain", "b", "--reason", "fan")
    path = cluster.folder / "hosts.yaml"
    document = yaml.safe_load(path.read_text())
    document["pools"]["main"]["hosts"][1]["name"] = "beta"
    path.write_text(yaml.safe_dump(document))
    assert edits(cluster.json("hosts", "apply", expect=10)) == {"a": "same", "beta": "renamed"}
    cluster.run("hosts", "undrain", "beta")
    assert edits(cluster.json("hosts", "apply")) == {"a": "same", "beta": "same"}

    del document["pools"]["main"]["hosts"][1]
    path.write_text(yaml.safe_dump(document))
    assert edits(cluster.json("hosts", "apply")) == {"a": "same", "beta": "gone"}
    (notes,) = [
        json.loads(found.read_text())["hosts"]
        for found in cluster.home.rglob("hosts.json")
        if found.is_file()
    ]
    (scope,) = notes.values()
    assert set(scope) == {"a"}


def test_a_host_that_is_not_fit_stays_new(tmp_path: Path, lab: Lab) -> None:
    """Exit 10, and the next apply asks it again; the fit one is done with."""
    cluster = Cluster(folder=tmp_path / "c", lab=lab)
    cluster.write_hosts(b={"python": "/nowhere/python"})
    cluster.run("hosts", "apply", expect=10)
    again = cluster.json("hosts", "apply", expect=10)
    assert edits(again) == {"a": "same", "b": "new"}
