"""What the drivers of real stores get wrong by themselves, and what a person is told when one refuses."""

from __future__ import annotations

import io
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmctl.errors import ConfigError, LlmctlError, NotFoundError, TransferError
from llmctl.storage.drivers.connect import connect
from llmctl.storage.drivers.s3 import PART, S3Driver
from llmctl.storage.files import open_store
from tests.contract.stores import store_uri
from tests.lab.ceph import Ceph
from tests.lab.hdfs import Hdfs

pytestmark = pytest.mark.stores

MANY = 10_050


@pytest.mark.parametrize("kind", ["hdfs", "s3-http"])
def test_a_listing_has_no_limit(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """More than 10,000 files in one folder are all listed, by every way to them, and all deleted."""
    uri = store_uri(request, kind, tmp_path, monkeypatch)
    driver, root = connect(uri)
    names = [f"d/{number:05}" for number in range(MANY)]
    with ThreadPoolExecutor(32) as threads:
        list(threads.map(lambda name: driver.write(f"{root}/{name}", io.BytesIO, 0), names))
    ways = [open_store(uri)]
    if kind == "hdfs":
        hdfs: Hdfs = request.getfixturevalue("hdfs")
        ways.append(open_store(uri.replace(f"hdfs://{hdfs.rpc}", f"webhdfs://{hdfs.web}")))
    for way in ways:
        assert [file.path for file in way.list()] == names
    ways[-1].delete("d")
    assert ways[0].list() == []


@pytest.mark.parametrize("kind", ["s3-http", "s3-https"])
@pytest.mark.parametrize("region", ["eu-west-1", None])
def test_https_and_a_region_of_the_environment_change_nothing(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    region: str | None,
) -> None:
    """Small objects, parts, copies and bulk deletes work by http and https, whatever AWS_REGION says."""
    uri = store_uri(request, kind, tmp_path, monkeypatch)
    if region:
        monkeypatch.setenv("AWS_DEFAULT_REGION", region)
        monkeypatch.setenv("AWS_REGION", region)
    store, data = open_store(uri), secrets.token_bytes(2 * PART + 5)
    store.write_bytes("small", b"x")
    store.write_bytes("d/large", data)
    store.rename("d", "e")
    assert store.read_bytes("e/large") == data
    store.delete("e")
    assert [file.path for file in store.list()] == ["small"]


def test_cleanup_ends_what_a_dead_writer_left(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads in parts that nobody completed, and temporary files, go once they are old; not before."""
    uri = store_uri(request, "s3-http", tmp_path, monkeypatch)
    driver, root = connect(uri)
    assert isinstance(driver, S3Driver)
    bucket, key = root.split("/", 1)
    driver._do("create_multipart_upload", Bucket=bucket, Key=f"{key}/lost")
    store = open_store(uri)
    store.write_bytes("kept", b"")
    store.write_bytes(".a.12ab.part", b"")
    assert store.cleanup(older_than_s=3600) == ()
    assert store.cleanup(older_than_s=0) == (".a.12ab.part", "lost")
    assert store.cleanup(older_than_s=0) == ()
    assert store.exists("kept")


@pytest.mark.parametrize("kind", ["hdfs", "webhdfs"])
def test_hdfs_temporary_files_are_cleaned(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What a killed writer left beside a file on HDFS goes with cleanup, and nothing else."""
    store = open_store(store_uri(request, kind, tmp_path, monkeypatch))
    store.write_bytes("d/.a.12ab.part", b"half")
    store.write_bytes("d/a", b"whole")
    assert store.cleanup(older_than_s=3600) == ()
    assert store.cleanup(older_than_s=0) == ("d/.a.12ab.part",)
    assert store.read_bytes("d/a") == b"whole"


def test_a_refusal_of_s3_tells_its_reason(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong secret and a missing bucket are told as what they are, at once and without the secret."""
    for name, value in ceph.environment().items():
        monkeypatch.setenv(name, value)
    for use in (lambda store: store.write_bytes("a", b"x"), lambda store: store.list()):
        with pytest.raises(NotFoundError, match="nosuchbucket: no such bucket"):
            use(open_store("s3://nosuchbucket/x"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wr0ng" * 8)
    with pytest.raises(TransferError, match=r"SignatureDoesNotMatch|Forbidden") as caught:
        open_store(f"s3://{ceph.bucket}/x").write_bytes("a", b"x")
    assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize("kind", ["hdfs", "webhdfs"])
def test_a_refusal_of_hdfs_tells_its_reason(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A file where a folder is wanted, and a folder where a file is, are told by name; nothing is lost."""
    store = open_store(store_uri(request, kind, tmp_path, monkeypatch))
    store.write_bytes("file", b"kept")
    with pytest.raises(LlmctlError, match="file"):
        store.write_bytes("file/below", b"")
    store.write_bytes("folder/x", b"kept")
    with pytest.raises(LlmctlError, match="folder"):
        store.write_bytes("folder", b"")
    assert [(file.path, file.size) for file in store.list()] == [("file", 4), ("folder/x", 4)]


def test_named_entries_reach_both_stores(
    ceph: Ceph, hdfs: Hdfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry of stores.yaml is a URL scheme: endpoint, keys, certificate, NameNode come from it alone."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "llmctl" / "stores.yaml"
    path.parent.mkdir()
    path.touch(mode=0o600)
    path.write_text(
        f"ours: {{type: s3, endpoint: '{ceph.https}', ca: {ceph.ca},"
        f" key: {ceph.key}, secret: {ceph.secret}}}\n"
        f"warehouse: {{type: hdfs, host: '{hdfs.rpc}'}}\n"
        f"web: {{type: webhdfs, host: '{hdfs.web}', user: root}}\n"
    )
    folder = secrets.token_hex(6)
    for uri in (f"ours://{ceph.bucket}/{folder}", f"warehouse://{folder}/x"):
        store = open_store(uri)
        store.write_bytes("a", b"data")
        assert store.read_bytes("a") == b"data"
        assert store.uri == uri
    assert open_store(f"web://{folder}/x").read_bytes("a") == b"data"
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read it"):
        open_store(f"ours://{ceph.bucket}/{folder}")


def test_hadoop_conf_dir_names_the_namenode(hdfs: Hdfs, monkeypatch: pytest.MonkeyPatch) -> None:
    """hdfs:///folder means fs.defaultFS of the core-site.xml in HADOOP_CONF_DIR."""
    monkeypatch.setenv("HADOOP_CONF_DIR", str(hdfs.conf))
    store = open_store(f"hdfs:///{secrets.token_hex(6)}")
    store.write_bytes("a", b"data")
    assert store.read_bytes("a") == b"data"
