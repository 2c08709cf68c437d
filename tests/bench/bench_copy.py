"""One big file to and from a host's tmpfs against `ssh cat`: `python tests/bench/bench_copy.py` as root.

Both use aes128-gcm. Goals: put within 1.5 and get within 1.15 of `ssh cat`, never a stall by rekeying.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.controller.transport.files import get_file, put_file
from tests.bench.side_by_side import SSH_GCM, by_turns, lab_and_transport, table

SHM = Path("/dev/shm")


def fill(path: Path, size: int) -> None:
    """Bytes that no compressor likes."""
    with Path("/dev/urandom").open("rb") as source, path.open("wb") as target:
        while size > 0:
            size -= target.write(source.read(min(size, 1 << 20)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    source, back = SHM / "llmctl-bench-source", SHM / "llmctl-bench-back"
    try:
        fill(source, args.mib << 20)
        with lab_and_transport() as (lab, transport):
            ssh = ["ssh", "-F", lab.ssh_config, *SSH_GCM, "-o", "ControlPath=none", "node0"]

            def ssh_put() -> None:
                with source.open("rb") as file:
                    lab.client([*ssh, "cat >/dev/shm/theirs"], stdin=file, check=True)

            def ssh_get() -> None:
                with back.open("wb") as file:
                    lab.client([*ssh, "cat /dev/shm/theirs"], stdout=file, check=True)

            def clean() -> None:
                back.unlink(missing_ok=True)
                lab.on_host("node0", ["rm", "-f", "/dev/shm/ours"], check=True)

            def nothing() -> None:
                back.unlink(missing_ok=True)

            puts = {
                "llmctl put": (clean, lambda: void(put_file(transport, source, "/dev/shm/ours"))),
                "ssh cat": (clean, ssh_put),
            }
            table(f"put {args.mib} MiB", by_turns(puts, args.rounds), "ssh cat", args.rounds)
            put_file(transport, source, "/dev/shm/ours")
            gets = {
                "llmctl get": (nothing, lambda: void(get_file(transport, "/dev/shm/ours", back))),
                "ssh cat": (nothing, ssh_get),
            }
            table(f"get {args.mib} MiB", by_turns(gets, args.rounds), "ssh cat", args.rounds)
    finally:
        source.unlink(missing_ok=True)
        back.unlink(missing_ok=True)


def void(_: object) -> None:
    """A value that the clock doesn't need."""


if __name__ == "__main__":
    main()
