"""Training from real Ceph and HDFS on two hosts: every rank reads by itself; no secret is left anywhere."""

from __future__ import annotations

import secrets
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.cluster import Cluster
from tests.lab.ceph import Ceph
from tests.lab.hdfs import Hdfs

pytestmark = [pytest.mark.stores, pytest.mark.torch]

MODEL = {"size": "tiny", "layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn_dim": 64}
RECIPE = {
    "model": MODEL,
    "steps": 6,
    "global_batch": 4,
    "micro_batch": 2,
    "sequence_length": 32,
    "threads": 1,
    "tensorboard": False,
}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(folder=tmp_path / "c")


@pytest.fixture
def place() -> str:
    """A folder of this test's own in whatever store."""
    return f"train-{secrets.token_hex(4)}"


def write_job(cluster: Cluster, root: str, checkpoints: str | None = None, **env: object) -> None:
    """Data and checkpoints below one root. The ranks' home is another one than the controller's."""
    own = {"HOME": str(cluster.folder / "nobody"), "XDG_CONFIG_HOME": str(cluster.folder / "nobody")}
    cluster.write_job(
        data={"uri": f"{root}/corpus"},
        checkpoint={"uri": checkpoints or f"{root}/ckpt", "every": 3},
        recipe=RECIPE,
        env={**env, "set": {**own, **env.get("set", {})}},  # type: ignore[dict-item]
    )


def shard(cluster: Cluster, root: str, **env: str) -> None:
    text = Path(sysconfig.get_path("stdlib"), "argparse.py")
    argv = ("data", "shard", str(text), f"{root}/corpus", "--shard-tokens", "30000", "--workers", "1")
    cluster.run(*argv, env=env)


def write_accounts(cluster: Cluster, entries: dict[str, dict[str, str]]) -> None:
    path = cluster.home / ".config" / "llmctl" / "stores.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(entries))


def ceph_account(ceph: Ceph) -> dict[str, str]:
    return {
        "type": "s3",
        "endpoint": ceph.https,
        "key": ceph.key,
        "secret": ceph.secret,
        "ca": str(ceph.ca),
    }


def command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:
            continue


def files_with(folder: Path, *texts: str) -> list[str]:
    """Every file below `folder` that holds one of the texts; stores.yaml itself may."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name != "stores.yaml":
            content = path.read_bytes()
            found += [str(path) for text in texts if text.encode() in content]
    return found


def cached(cluster: Cluster, host: str) -> list[str]:
    return [path.name for path in (cluster.workdir(host) / "cache").rglob("*") if path.is_file()]


def test_an_account_of_the_controller_is_enough_and_leaves_no_trace(
    cluster: Cluster, ceph: Ceph, place: str
) -> None:
    """Ceph over https with a private CA, known to the controller's stores.yaml only: both hosts read and
    write there with a cold cache; the secret is in no command line, no file and nothing that is printed."""
    write_accounts(cluster, {"lab": ceph_account(ceph)})
    root = f"lab://{ceph.bucket}/{place}"
    shard(cluster, root)
    write_job(cluster, root)
    told: list[str] = []
    lines: set[bytes] = set()
    with cluster.popen("train") as train:
        while train.poll() is None:
            lines.update(command_lines())
            try:
                told += train.communicate(timeout=0.3)
            except subprocess.TimeoutExpired:
                continue
    assert train.returncode == 0, told
    assert cached(cluster, "a")
    assert cached(cluster, "b")
    assert sum(b"llmctl.worker.train" in line for line in lines) >= 2, "the ranks were looked at"
    assert not [line for line in lines if ceph.secret.encode() in line or ceph.key.encode() in line]
    assert not files_with(cluster.folder, ceph.secret, ceph.key)
    assert not [text for text in told if ceph.secret in text or ceph.key in text]
    assert "✓ data" in "".join(told)


def test_a_rank_that_prints_its_environment_shows_no_account(
    cluster: Cluster, ceph: Ceph, place: str
) -> None:
    """What a script of the job prints while it is watched is masked inside the accounts, too."""
    write_accounts(cluster, {"lab": ceph_account(ceph)})
    script = "import json, os\nprint(json.loads(os.environ['LLMCTL_STORES'])['lab']['secret'], 'was that')\n"
    cluster.write_script(script, checkpoint={"uri": f"lab://{ceph.bucket}/{place}"})
    done = cluster.run("train", "--no-pull")
    assert "*** was that" in done.stdout + done.stderr
    assert ceph.secret not in done.stdout + done.stderr


def test_secrets_of_the_shell_reach_the_ranks(cluster: Cluster, ceph: Ceph, place: str) -> None:
    """Ceph over http by the usual variables, named in `env.secrets` and set nowhere else."""
    root, env = f"s3://{ceph.bucket}/{place}", ceph.environment()
    shard(cluster, root, **env)
    names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    write_job(cluster, root, secrets=names, set={"AWS_ENDPOINT_URL": ceph.http})
    cluster.run("train", env=env)
    assert cached(cluster, "b")
    assert not files_with(cluster.folder, ceph.secret, ceph.key)


@pytest.mark.parametrize("kind", ["hdfs", "webhdfs"])
def test_hdfs_is_read_and_written_by_every_rank(kind: str, cluster: Cluster, hdfs: Hdfs, place: str) -> None:
    """Two hosts, cold caches; the checkpoint is there afterwards, and a second run goes on from it."""
    root = f"{kind}://{hdfs.rpc if kind == 'hdfs' else hdfs.web}/{place}"
    shard(cluster, root)
    write_job(cluster, root)
    cluster.run("train")
    assert cached(cluster, "a")
    assert cached(cluster, "b")
    done = cluster.run("train", "--set", "recipe.steps=8")
    assert "succeeded" in done.stdout


def test_what_is_wrong_with_the_data_is_said_before_anything_starts(
    cluster: Cluster, ceph: Ceph, hdfs: Hdfs, place: str
) -> None:
    """No data set there, or an account that the store refuses: one line with the store's own reason, exit
    code 10, and no run on any host."""
    write_accounts(cluster, {"lab": ceph_account(ceph)})
    for root in (f"lab://{ceph.bucket}/{place}", f"hdfs://{hdfs.rpc}/{place}"):
        write_job(cluster, root)
        done = cluster.run("train", expect=10)
        assert f"data: {root}/corpus holds no data set" in done.stderr
        assert f"llmctl data shard SOURCE... {root}/corpus" in done.stderr
    write_accounts(cluster, {"lab": {**ceph_account(ceph), "secret": "wrong-one"}})
    write_job(cluster, f"lab://{ceph.bucket}/{place}")
    refused = cluster.run("train", expect=10)
    assert "(403)" in refused.stderr
    assert "check `lab` of your stores.yaml" in refused.stderr
    assert "wrong-one" not in refused.stderr
    write_accounts(cluster, {"lab": {key: value for key, value in ceph_account(ceph).items() if key != "ca"}})
    untrusted = cluster.run("train", expect=10)
    assert "CERTIFICATE_VERIFY_FAILED" in untrusted.stderr
    assert "name its file as `ca` in stores.yaml" in untrusted.stderr
    write_accounts(cluster, {"lab": ceph_account(ceph)})
    shard(cluster, f"lab://{ceph.bucket}/{place}")
    write_job(cluster, f"lab://{ceph.bucket}/{place}", checkpoints="lab://no-such-bucket/ckpt")
    nowhere = cluster.run("train", expect=10)
    assert "no-such-bucket: no such bucket" in nowhere.stderr
    assert not list(cluster.folder.glob("host-*/runs/*"))


def test_what_only_the_hosts_can_know_is_left_to_them(cluster: Cluster, ceph: Ceph, place: str) -> None:
    """This machine has no account at all: that is said, and the first rank's own reason ends the run
    at once: another attempt would have none either."""
    write_job(cluster, f"s3://{ceph.bucket}/{place}", set={"AWS_ENDPOINT_URL": ceph.http})
    done = cluster.run("train", expect=100)
    assert "not looked at from here" in done.stderr
    assert "credentials" in (done.stdout + done.stderr).lower(), done.stdout + done.stderr
    (run,) = cluster.json("status", "--all")["runs"]
    assert [one["state"] for one in cluster.verdict(run["run_id"])["attempts"]] == ["failed"]
