"""Push against rsync, side by side over the same sshd: `python tests/bench/bench_push.py` as root.

Cold: an empty workdir, a new connection each time. Warm: one file of the tree changed, our connection and
rsync's ControlMaster already open. Goals: cold no slower than rsync; warm at most 0.4 (2,000 files) and 0.7
(20,000 files) of it.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.controller.config.types import Host
from llmctl.controller.transport.base import Transport
from llmctl.controller.transport.pool import Connections
from llmctl.controller.transport.push import push_tree
from llmctl.controller.transport.pushmemory import PushMemory
from llmctl.controller.transport.tree import scan
from tests.bench.side_by_side import by_turns, lab_and_transport, table
from tests.lab.hosts import Lab

SOURCE = Path(subprocess.__file__).parent.rglob


def make_tree(root: Path, count: int) -> None:
    """`count` files with the content of the standard library's sources, in folders of 100."""
    texts = [path.read_bytes() for path in itertools.islice(SOURCE("*.py"), 400)]
    for number in range(count):
        path = root / f"pkg{number // 100}" / f"file{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(texts[number % len(texts)][:20_000] + b"# %d\n" % number)


class Bench:
    """One source tree and the two ways to push it."""

    def __init__(self, lab: Lab, transport: Transport, root: Path, scratch: Path) -> None:
        self.lab, self.transport, self.root, self.scratch = lab, transport, root, scratch
        self.change = itertools.count()
        self.round = itertools.count()
        self.ours, self.theirs = "/srv/ours", "/srv/rsync"
        self.memory = PushMemory(scratch / "memory")
        self.scan_cache = scratch / "scans"

    def nothing_there(self) -> None:
        """New places on the host, and a controller that remembers nothing of it; disks settled.

        What was pushed before is not deleted: ext4 walks past every inode that was freed in the last
        minutes, so that making 20,000 files after deleting as many takes 12 s instead of 2, for everybody.
        """
        self.settle()
        number = next(self.round)
        self.ours, self.theirs = f"/srv/ours{number}", f"/srv/rsync{number}"
        for name in ("memory", "scans"):
            shutil.rmtree(self.scratch / name, ignore_errors=True)
        subprocess.run(["sync"], check=True)

    def one_change(self) -> None:
        (self.root / "pkg3/file305.py").write_text(f"changed = {next(self.change)}\n")
        self.settle()

    def settle(self) -> None:
        """What a push does after its end (a spare clone) must not slow the next way down."""
        script = "while ls -d /srv/ours*/code/.new-* >/dev/null 2>&1; do sleep 0.05; done; sync"
        self.lab.on_host("node0", ["timeout", "60", "sh", "-c", script], check=True)

    def ours_cold(self) -> None:
        with Connections([Host(name="node0", addr="node0")]) as connections:
            self.push(connections.get("node0"))

    def ours_warm(self) -> None:
        self.push(self.transport)

    def push(self, transport: Transport) -> None:
        tree = lambda: scan(self.root, cache_dir=self.scan_cache)  # noqa: E731
        push_tree(transport, tree, workdir=self.ours, memory=self.memory)

    def rsync(self, *options: str) -> None:
        ssh = " ".join(["ssh", "-F", str(self.lab.ssh_config), *options])
        argv = ["rsync", "-a", "--delete", "-e", ssh, f"{self.root}/", f"node0:{self.theirs}/"]
        self.lab.client(argv, check=True)

    def run(self, count: int, cold: int, warm: int) -> None:
        ours = (self.nothing_there, self.ours_cold)
        theirs = (self.nothing_there, lambda: self.rsync("-o", "ControlMaster=no", "-o", "ControlPath=none"))
        medians = by_turns({"llmctl": ours, "rsync": theirs}, cold)
        table(f"{count} files, cold", medians, "rsync", cold)
        self.prepare_warm()
        ways = {
            "llmctl, warm": (self.one_change, self.ours_warm),
            "rsync, ControlMaster": (self.one_change, self.rsync),
            "rsync": (self.one_change, lambda: self.rsync("-o", "ControlPath=none")),
        }
        table(f"{count} files, one changed", by_turns(ways, warm), "rsync, ControlMaster", warm)

    def prepare_warm(self) -> None:
        master = [
            "ssh",
            "-F",
            self.lab.ssh_config,
            "-o",
            "ControlMaster=yes",
            "-o",
            "ControlPersist=600",
            "-fN",
            "node0",
        ]
        if subprocess.run(
            ["ssh", "-F", self.lab.ssh_config, "-O", "check", "node0"], capture_output=True, check=False
        ).returncode:
            self.lab.client(master, check=True)
        self.rsync()
        time.sleep(2.1)  # files younger than two seconds are read again by the next scan
        self.ours_warm()
        self.one_change()
        self.ours_warm()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=[2000, 20_000])
    parser.add_argument("--cold", type=int, default=3, help="rounds")
    parser.add_argument("--warm", type=int, default=9, help="rounds")
    args = parser.parse_args()
    with lab_and_transport() as (lab, transport), tempfile.TemporaryDirectory() as folder:
        for count in args.files:
            root, scratch = Path(folder, f"tree{count}"), Path(folder, f"scratch{count}")
            make_tree(root, count)
            Bench(lab, transport, root, scratch).run(count, args.cold, args.warm)
        lab.client(["ssh", "-F", lab.ssh_config, "-O", "exit", "node0"], check=False, capture_output=True)


if __name__ == "__main__":
    main()
