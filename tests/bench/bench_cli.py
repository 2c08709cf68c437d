"""What a start of `llmctl` costs: CPU seconds and what is imported, beside an empty Python.

    python tests/bench/bench_cli.py [--runs 15]

The ledger holds one finished run; no host is asked.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.controller.ledger.records import HostRecord, RunRecord
from llmctl.controller.ledger.store import Ledger
from llmctl.wire.states import RunState

HEAVY = ("torch", "paramiko", "fsspec")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "HOME": home, "LLMCTL_STATE_DIR": home}
        with Ledger(home, warn=print) as ledger:
            ledger.add(finished_run())
        ways = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "llmctl --help": [sys.executable, "-m", "llmctl", "--help"],
            "llmctl status": [sys.executable, "-m", "llmctl", "status"],
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(runs + 1):
            for way, argv in ways.items():
                took = cpu_seconds(argv, env)
                if number:
                    seconds[way].append(took)
        print(f"| start, n={runs}, in turns | median CPU s | max CPU s | heavy imports |")
        print("|---|---|---|---|")
        for way, argv in ways.items():
            found = ", ".join(heavy_imports(argv, env)) or "none"
            print(f"| `{way}` | {statistics.median(seconds[way]):.3f} | {max(seconds[way]):.3f} | {found} |")


def finished_run() -> RunRecord:
    return RunRecord(
        run_id="demo-7f3a",
        name="demo",
        created_at=time.time() - 60,
        hosts=(HostRecord(name="a", addr="10.0.0.1"),),
        state=RunState.SUCCEEDED,
        step=100,
        total=100,
        exit_code=0,
    )


def cpu_seconds(argv: list[str], env: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def heavy_imports(argv: list[str], env: dict[str, str]) -> list[str]:
    traced = [argv[0], "-X", "importtime", *argv[1:]]
    done = subprocess.run(traced, env=env, capture_output=True, text=True, check=True)
    names = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    return [name for name in HEAVY if name in names]


if __name__ == "__main__":
    main()
