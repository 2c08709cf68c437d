"""A real Ceph on this machine: monitor, OSD and RADOS gateway on loopback, http and https.

`with Ceph.up() as ceph:` starts them in a new folder on free ports and ends them by pid. Debian's packages
run without systemd and without a manager daemon. BlueStore, because memstore loses everything when killed.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.daemons import Daemon, ServerError, clean_environment, free_ports, listening, run, wait_for

PACKAGES = ("ceph-mon", "ceph-osd", "radosgw", "ceph-common", "openssl")
_TOOLS = ("ceph-mon", "ceph-osd", "radosgw", "ceph", "monmaptool", "radosgw-admin", "openssl")
_START_S = 60.0

_CONF = """\
[global]
fsid = {fsid}
mon initial members = a
mon host = v1:127.0.0.1:{mon_port}
monmap = {dir}/monmap
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr2 = false
auth cluster required = none
auth service required = none
auth client required = none
keyring = {dir}/keyring
run dir = {dir}/run
admin socket = {dir}/run/$name.$pid.asok
pid file = {dir}/run/$name.pid
log file = {dir}/log/$name.log
mon cluster log file = {dir}/log/cluster.log
crash dir = {dir}/log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon max pg per osd = 2000
paxos propose interval = 0.1
mon data avail warn = 1
mon data avail crit = 1
mon osd full ratio = 0.97
mon osd backfillfull ratio = 0.96
mon osd nearfull ratio = 0.95

[mon]
mon data = {dir}/mon/$id

[osd]
osd data = {dir}/osd/$id
osd objectstore = bluestore
osd memory target = 939524096
bluestore block size = 21474836480
bluestore block create = true
bluestore fsck quick fix on mount = false

[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{http_port} ssl_endpoint=127.0.0.1:{https_port} \
ssl_certificate={dir}/cert.pem ssl_private_key={dir}/key.pem
rgw relaxed region enforcement = true
rgw data = {dir}/rgw
rgw enable usage log = false
rgw thread pool size = 64
"""


@dataclass(frozen=True, kw_only=True)
class Ceph:
    """A running Ceph.

    Attributes:
        http, https: the gateway's S3 endpoints, of the same objects.
        ca: the file by which the self-signed https endpoint is trusted.
        key, secret: of its only user.
        bucket: made for the tests.
        mon, osd, rgw: to be killed, frozen and started again.
    """

    dir: Path
    http: str
    https: str
    ca: Path
    key: str
    secret: str
    bucket: str
    mon: Daemon
    osd: Daemon
    rgw: Daemon

    @classmethod
    @contextmanager
    def up(cls) -> Iterator[Ceph]:
        folder = Path(tempfile.mkdtemp(prefix="llmctl-ceph-"))
        ceph = _prepare(folder)
        try:
            _start(ceph)
            yield ceph
        finally:
            for daemon in (ceph.rgw, ceph.osd, ceph.mon):
                daemon.kill9()  # nothing of it is kept
            shutil.rmtree(folder, ignore_errors=True)

    def environment(self, *, https: bool = False) -> dict[str, str]:
        """What a client finds its way by."""
        env = {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self.https if https else self.http,
        }
        return {**env, "AWS_CA_BUNDLE": str(self.ca)} if https else env

    def restore(self) -> None:
        """Everything alive again and ready to serve."""
        for daemon in (self.mon, self.osd, self.rgw):
            daemon.thaw()
            daemon.start()
        wait_for("osd up", self._osd_is_up, _START_S, self.mon)
        port = int(self.http.rsplit(":", 1)[1])
        wait_for("gateway", lambda: listening(port), _START_S, self.rgw)

    def _osd_is_up(self) -> bool:
        # Seen twice: right after `osd new` the monitor calls it "wrong fsid", and the OSD gives up.
        self.osd.start()
        conf = str(self.dir / "ceph.conf")
        argv = ["ceph", "-c", conf, "--connect-timeout", "20", "osd", "stat"]
        try:
            return " 1 up" in run(argv, clean_environment(), _START_S)
        except ServerError:
            return False  # a monitor under load refuses now and then


def missing() -> str | None:
    """Why there can be no Ceph here; None: there can."""
    absent = [tool for tool in _TOOLS if shutil.which(tool, path="/usr/bin:/usr/sbin:/bin:/sbin") is None]
    return f"not installed: {', '.join(absent)} (make packages)" if absent else None


def _prepare(folder: Path) -> Ceph:
    mon_port, http_port, https_port = free_ports(3)
    for name in ("mon/a", "osd/0", "rgw", "log", "run"):
        (folder / name).mkdir(parents=True)
    (folder / "keyring").touch()
    conf = folder / "ceph.conf"
    conf.write_text(
        _CONF.format(
            fsid=uuid.uuid4(), dir=folder, mon_port=mon_port, http_port=http_port, https_port=https_port
        )
    )

    def daemon(name: str, *argv: str) -> Daemon:
        return Daemon(
            name=name,
            argv=[argv[0], "-c", str(conf), *argv[1:], "-f"],
            log=folder / "log" / f"{name}.out",
            env=clean_environment(),
        )

    return Ceph(
        dir=folder,
        http=f"http://127.0.0.1:{http_port}",
        https=f"https://127.0.0.1:{https_port}",
        ca=folder / "cert.pem",
        key="LAB" + secrets.token_hex(8).upper(),
        secret=secrets.token_hex(20),
        bucket="lab",
        mon=daemon("mon", "ceph-mon", "-i", "a"),
        osd=daemon("osd", "ceph-osd", "-i", "0"),
        rgw=daemon("rgw", "radosgw", "-n", "client.rgw"),
    )


def _start(ceph: Ceph) -> None:
    conf, env = ceph.dir / "ceph.conf", clean_environment()
    fsid = next(line.split()[-1] for line in conf.read_text().splitlines() if line.startswith("fsid"))
    mon_address = next(
        line.split(" = ")[1] for line in conf.read_text().splitlines() if line.startswith("mon host")
    )
    run(
        ["monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[{mon_address}]", f"{ceph.dir}/monmap"],
        env,
    )
    run(["ceph-mon", "-c", str(conf), "--mkfs", "-i", "a", "--monmap", f"{ceph.dir}/monmap"], env)
    ceph.mon.start()
    _make_certificate(ceph.dir)
    osd = str(uuid.uuid4())
    run(["ceph", "-c", str(conf), "--connect-timeout", "30", "osd", "new", osd, "0"], env, _START_S)
    run(["ceph-osd", "-c", str(conf), "-i", "0", "--mkfs", "--osd-uuid", osd], env)
    ceph.restore()
    admin = ["radosgw-admin", "-c", str(conf), "-n", "client.rgw"]
    run(
        [
            *[*admin, "user", "create", "--uid", "lab", "--display-name", "lab"],
            *["--access-key", ceph.key, "--secret-key", ceph.secret],
        ],
        env,
        _START_S,
    )
    _warm_up(ceph)


def _warm_up(ceph: Ceph) -> None:
    """The first writes create pools, seconds each: no test should pay for, or trip over, that."""
    import botocore.session

    client = botocore.session.get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=ceph.http,
        aws_access_key_id=ceph.key,
        aws_secret_access_key=ceph.secret,
    )
    client.create_bucket(Bucket=ceph.bucket)
    client.put_object(Bucket=ceph.bucket, Key="warm", Body=b"up")
    upload = client.create_multipart_upload(Bucket=ceph.bucket, Key="warm")["UploadId"]
    client.abort_multipart_upload(Bucket=ceph.bucket, Key="warm", UploadId=upload)
    client.delete_object(Bucket=ceph.bucket, Key="warm")
    client.close()


def _make_certificate(folder: Path) -> None:
    run(
        [
            *["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=lab"],
            *["-addext", "subjectAltName=IP:127.0.0.1"],
            *["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        ],
        clean_environment(),
    )
