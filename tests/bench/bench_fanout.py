"""One payload to N hosts, host to host against N sends: `python tests/bench/bench_fanout.py` as root.

Every link has the same rate both ways, the operator's uplink too. Goal: fan-out at most 0.4 of the sends.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.controller.backends.archive import build
from llmctl.controller.config.types import Host
from llmctl.controller.execute.fanout import Delivered, Member, fan_out
from llmctl.controller.transport.files import put_file
from llmctl.controller.transport.pool import Connections
from llmctl.errors import LlmctlError
from llmctl.wire.environments import Blob
from tests.bench.side_by_side import by_turns, table
from tests.lab.hosts import Lab, Link

FOLDER = "/dev/shm/wheels"


def limit_uplinks(lab: Lab, mbit: float) -> None:
    """What the lab's own rate leaves free: what hosts send, and what the operator sends to all of them."""
    shape = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "128kb", "latency", "50ms"]
    lab.client(["tc", "qdisc", "add", "dev", "br0", *shape], check=True)
    for name in lab.names:
        lab.on_host(name, ["tc", "qdisc", "add", "dev", "eth0", *shape], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--mbit", type=float, default=400.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Lab.up(args.hosts, link=Link(rate_mbit=args.mbit)) as lab:
        source = Path(scratch, "payload")
        with source.open("wb") as out:
            for _ in range(args.mib):
                out.write(os.urandom(1 << 20))
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        blob = Blob(sha256=digest, size=args.mib << 20, name="payload")
        limit_uplinks(lab, args.mbit)
        os.environ["LLMCTL_SSH_CONFIG"] = str(lab.ssh_config)
        with lab.inside():
            _measure(lab, blob, source, args)


def _measure(lab: Lab, blob: Blob, source: Path, args: argparse.Namespace) -> None:
    hosts = [Host(name=name, addr=name, python=sys.executable) for name in lab.names]
    members = [Member(host=host, folder=FOLDER, addresses=(lab.ips[host.name],)) for host in hosts]
    with Connections(hosts) as connections:

        def clean() -> None:
            for name in lab.names:
                lab.on_host(name, ["rm", "-rf", FOLDER], check=True)

        def round_trip() -> None:
            results = fan_out(members, [blob], lambda _blob: source, connections, build())
            bad = [one for one in results.values() if not isinstance(one, Delivered)]
            assert not bad, bad
            assert sum(one.source is None for one in results.values() if isinstance(one, Delivered)) == 1

        def sends() -> None:
            dest = f"{FOLDER}/{blob.sha256}/{blob.name}"
            results = connections.each(hosts, lambda host: put_file(connections.get(host.name), source, dest))
            assert not [one for one in results.values() if isinstance(one, LlmctlError)]

        ways = {"fan-out": (clean, round_trip), f"{len(hosts)} sends": (clean, sends)}
        title = f"{args.mib} MiB to {len(hosts)} hosts, links of {args.mbit:g} Mbit/s"
        table(title, by_turns(ways, args.rounds), f"{len(hosts)} sends", args.rounds)


if __name__ == "__main__":
    main()
