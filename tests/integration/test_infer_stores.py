"""`llmctl infer batch` on two hosts with model and prompts on a real HDFS, and answers in a real Ceph."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from llmctl.storage.files import open_store
from tests.hf_kit import run
from tests.integration.cluster import Cluster
from tests.integration.infer_kit import infer_job, make_model, prompts, run_batch
from tests.integration.test_train_stores import ceph_account, files_with, write_accounts
from tests.lab.ceph import Ceph
from tests.lab.hdfs import Hdfs

pytestmark = [pytest.mark.stores, pytest.mark.torch, pytest.mark.timeout(900)]

LINES = 18


def test_a_batch_from_one_store_to_another(
    tmp_path: Path, ceph: Ceph, hdfs: Hdfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of ours and the prompts are read from HDFS; parts and manifest come to S3 over https, by
    the account in this machine's stores.yaml, which is left nowhere; the same command then finds them."""
    cluster = Cluster(folder=tmp_path / "c")
    place = f"infer-{secrets.token_hex(4)}"
    source = f"hdfs://{hdfs.rpc}/{place}"
    write_accounts(cluster, {"lab": ceph_account(ceph)})
    run("import", "--files", "2", make_model(tmp_path / "hf"), f"{source}/model")
    prompts(tmp_path / "in.jsonl", LINES, max_tokens=9, bad={4: "not json"})
    open_store(source).write_bytes("in.jsonl", (tmp_path / "in.jsonl").read_bytes())
    own = {"HOME": str(tmp_path / "nobody"), "XDG_CONFIG_HOME": str(tmp_path / "nobody")}
    infer_job(cluster, f"{source}/model", max_batch=2, part_lines=4)
    command = ("--input", f"{source}/in.jsonl", "--output", f"lab://{ceph.bucket}/{place}/out")
    variables = [word for name, value in own.items() for word in ("--env", f"{name}={value}")]
    told = run_batch(cluster, *command, *variables)
    for name, value in ceph.environment().items():
        monkeypatch.setenv(name, value)
    answers = open_store(f"s3://{ceph.bucket}/{place}/out")
    parts = [file.path for file in answers.list() if file.path.startswith("part-")]
    records = [json.loads(line) for part in parts for line in answers.read_bytes(part).splitlines()]
    assert [record["index"] for record in records] == list(range(LINES))
    assert [record["index"] for record in records if "error" in record] == [4]
    texts = {(record["index"] % 6, record["text"]) for record in records if "error" not in record}
    assert len(texts) == 6, "the same prompt, another text"
    assert json.loads(answers.read_bytes("manifest.json"))["lines"] == LINES
    before = answers.list()
    assert "succeeded" in run_batch(cluster, *command, *variables)
    assert answers.list() == before
    assert ceph.secret not in told
    assert not files_with(cluster.folder, ceph.secret, ceph.key)
