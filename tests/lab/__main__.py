"""A lab by hand: `python -m tests.lab 2 -- bash` opens a shell in the client's network of two hosts.

The command finds LLMCTL_SSH_CONFIG, LAB_SSH_CONFIG and one LAB_PID_<host> per host (for `nsenter -t`).
The lab ends with the command.
"""

from __future__ import annotations

import argparse
import sys

from tests.lab.hosts import Lab, Link


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("count", type=int, help="number of hosts")
    parser.add_argument("--delay", type=float, default=0.0, help="one-way delay in ms")
    parser.add_argument("--loss", type=float, default=0.0, help="lost frames in percent")
    parser.add_argument("--rate", type=float, help="Mbit/s towards each host")
    parser.add_argument("--mem", type=int, help="MiB per host")
    parser.add_argument("--cpus", type=float, help="CPUs per host")
    parser.add_argument("command", nargs="+", help="after `--`")
    args = parser.parse_args()
    link = Link(delay_ms=args.delay, loss_pct=args.loss, rate_mbit=args.rate)
    with Lab.up(args.count, link=link, mem_mib=args.mem, cpus=args.cpus) as lab:
        env = {"LAB_SSH_CONFIG": str(lab.ssh_config)}
        env |= {f"LAB_PID_{name}": str(lab.pid(name)) for name in lab.names}
        return lab.client(args.command, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
