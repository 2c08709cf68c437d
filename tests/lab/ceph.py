"""A real Ceph on this machine: monitor, OSD and RADOS gateway on loopback, http and https; CephFS on demand.

`with Ceph.up() as ceph:` starts them in a new folder on free ports and ends them by pid. Debian's packages
run without systemd and without a manager daemon. BlueStore, because memstore loses everything when killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.daemons import (
    START_S,
    STOP_S,
    Daemon,
    ServerError,
    clean_environment,
    free_ports,
    listening,
    run,
    started,
    wait_for,
)

_TOOLS = ("ceph-mon", "ceph-osd", "radosgw", "ceph", "monmaptool", "radosgw-admin", "openssl")
_FS_TOOLS = ("ceph-mds", "ceph-fuse", "umount")

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

[mds]
mds data = {dir}/mds/$id
mds cache memory limit = 134217728

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
        mon, osd, rgw, mds: to be killed, frozen and started again; mds serves what `mounted` mounts.
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
    mds: Daemon
    fuse: Daemon

    @classmethod
    def up(cls) -> AbstractContextManager[Ceph]:
        return started(cls._up)

    @classmethod
    @contextmanager
    def _up(cls) -> Iterator[Ceph]:
        folder = Path(tempfile.mkdtemp(prefix="llmctl-ceph-"))
        ceph = _prepare(folder)
        try:
            _start(ceph)
            yield ceph
        finally:
            for daemon in (ceph.mds, ceph.rgw, ceph.osd, ceph.mon):
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

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """A CephFS of its own pools, mounted by ceph-fuse: the folder."""
        ceph = ["ceph", "-c", str(self.dir / "ceph.conf"), "--connect-timeout", "30"]
        for pool in ("cephfs_meta", "cephfs_data"):
            run([*ceph, "osd", "pool", "create", pool, "8"], clean_environment(), START_S)
        run([*ceph, "fs", "new", "labfs", "cephfs_meta", "cephfs_data"], clean_environment(), START_S)
        self.mds.start()
        place = self.dir / "mnt"
        try:
            wait_for("CephFS", lambda: self._is_mounted(place), START_S, self.mds)
            yield place
        finally:
            self._unmount(place)

    def _is_mounted(self, place: Path) -> bool:
        self.fuse.start()  # again and again: it gives up while no metadata server is active yet
        return place.is_mount()

    def _unmount(self, place: Path) -> None:
        # Its process ends by itself then; where that hangs, a lazy unmount frees the path all the same.
        try:
            run(["umount", str(place)], clean_environment(), STOP_S)
        except ServerError:
            self.fuse.kill9()
            subprocess.run(["umount", "-l", str(place)], capture_output=True, timeout=STOP_S, check=False)
        self.fuse.stop()
        self.mds.kill9()

    def restore(self) -> None:
        """Everything alive again and ready to serve."""
        for daemon in (self.mon, self.osd, self.rgw):
            daemon.thaw()
            daemon.start()
        wait_for("osd up", self._osd_is_up, START_S, self.mon)
        port = int(self.http.rsplit(":", 1)[1])
        wait_for("gateway", lambda: listening(port), START_S, self.rgw)

    def _osd_is_up(self) -> bool:
        # Seen twice: right after `osd new` the monitor calls it "wrong fsid", and the OSD gives up.
        self.osd.start()
        conf = str(self.dir / "ceph.conf")
        argv = ["ceph", "-c", conf, "--connect-timeout", "20", "osd", "stat"]
        try:
            return " 1 up" in run(argv, clean_environment(), START_S)
        except ServerError:
            return False  # a monitor under load refuses now and then


def missing() -> str | None:
    """Why there can be no Ceph here; None: there can."""
    absent = [tool for tool in _TOOLS if shutil.which(tool, path="/usr/bin:/usr/sbin:/bin:/sbin") is None]
    return f"not installed: {', '.join(absent)} (make packages)" if absent else None


def missing_fs() -> str | None:
    """Why no CephFS can be mounted here though there is a Ceph; None: it can."""
    absent = [tool for tool in _FS_TOOLS if shutil.which(tool, path="/usr/bin:/usr/sbin:/bin:/sbin") is None]
    return f"not installed: {', '.join(absent)} (make packages)" if absent else None


def has_fuse() -> bool:
    """Whether this kernel, or the container that we are in, offers FUSE to us."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _prepare(folder: Path) -> Ceph:
    mon_port, http_port, https_port = free_ports(3)
    for name in ("mon/a", "osd/0", "mds/a", "rgw", "log", "run", "mnt"):
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
        mds=daemon("mds", "ceph-mds", "-i", "a"),
        fuse=daemon("fuse", "ceph-fuse", "--client_mountpoint=/", str(folder / "mnt")),
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
    run(["ceph", "-c", str(conf), "--connect-timeout", "30", "osd", "new", osd, "0"], env, START_S)
    run(["ceph-osd", "-c", str(conf), "-i", "0", "--mkfs", "--osd-uuid", osd], env)
    ceph.restore()
    admin = ["radosgw-admin", "-c", str(conf), "-n", "client.rgw"]
    run(
        [
            *[*admin, "user", "create", "--uid", "lab", "--display-name", "lab"],
            *["--access-key", ceph.key, "--secret-key", ceph.secret],
        ],
        env,
        START_S,
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
