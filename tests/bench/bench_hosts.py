"""`llmctl hosts check` (every fact, every verdict) beside `pdsh true`, `clush true` and `ansible -m setup`.

    sudo python tests/bench/bench_hosts.py [--hosts 4] [--names 32] [--runs 5] [--ansible /path/to/ansible]

Needs root: the hosts are namespaces of this machine, whose cores do the work of all of them. `--names` are
endpoints, each an alias of a host. `--bootstrap` adds a second `hosts bootstrap`, with nothing to do.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import sys
import tempfile
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.side_by_side import Way, by_turns, table
from tests.lab.hosts import Lab
from tests.wheel_kit import make_wheel


def run(lab: Lab, argv: list[str], folder: Path, **env: str) -> Way:
    def once() -> None:
        done = lab.client(
            argv, env={"HOME": str(folder), **env}, cwd=folder, capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            raise SystemExit(f"{argv[0]}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")

    return once


def ways(lab: Lab, names: list[str], folder: Path, ansible: str | None) -> dict[str, tuple[Way, Way]]:
    """Every way to ask all `names`; they are aliases of the lab's hosts in its ssh config."""
    options = ["-F", str(lab.ssh_config)]
    env = {"PDSH_SSH_ARGS_APPEND": " ".join(options), "PDSH_RCMD_TYPE": "ssh", "LANG": "C.UTF-8"}
    found = {
        "llmctl hosts check": run(lab, [sys.executable, "-m", "llmctl", "hosts", "check"], folder),
        "pdsh true": run(lab, ["pdsh", "-f", "64", "-w", ",".join(names), "true"], folder, **env),
        "clush true": run(
            lab, ["clush", "-f", "64", "-o", " ".join(options), "-w", ",".join(names), "true"], folder
        ),
    }
    if ansible:
        argv = [ansible, "all", "-i", ",".join(names) + ",", "-f", "64", "-m", "setup"]
        ssh = {"ANSIBLE_SSH_ARGS": " ".join(options), "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3"}
        found["ansible -m setup"] = run(lab, argv, folder, **ssh, **env)
    present = {name: way for name, way in found.items() if shutil.which(name.split()[0]) or name[0] in "la"}
    return {name: (lambda: None, way) for name, way in present.items()}


def second_bootstrap(lab: Lab, folder: Path) -> tuple[Way, Way]:
    """The hosts are made ready here, for a package of one file; what is timed finds that."""
    make_wheel(folder / "index", "alpha", "1.0")
    (folder / "requirements.txt").write_text("alpha\n")
    argv = [sys.executable, "-m", "llmctl", "hosts", "bootstrap", "-r", "requirements.txt", "--wheelhouse"]
    again = run(lab, argv, folder, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder / "index"))
    again()
    return (lambda: None, again)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--names", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--bootstrap", action="store_true")
    parser.add_argument("--ansible", default=shutil.which("ansible"))
    options = parser.parse_args()
    root = Path(__file__).parents[2]
    os.environ["PYTHONPATH"] = str(root)
    compileall.compile_dir(root / "llmctl", quiet=1)  # as an installed package is
    with Lab.up(options.hosts) as lab, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = [f"h{i}" for i in range(options.names)]
        nodes = {alias: lab.names[i % len(lab.names)] for i, alias in enumerate(names)}
        aliases = "".join(
            f"Host {alias}\n  HostName {lab.ips[node]}\n  HostKeyAlias {node}\n"
            for alias, node in nodes.items()
        )
        lab.ssh_config.write_text(aliases + lab.ssh_config.read_text())
        hosts = [
            {"name": alias, "addr": alias, "workdir": f"~/{alias}", "python": sys.executable}
            for alias in names
        ]
        (folder / "hosts.yaml").write_text(
            yaml.safe_dump({"version": 1, "pools": {"main": {"hosts": hosts}}})
        )
        asked = ways(lab, names, folder, options.ansible)
        if options.bootstrap:
            asked["second llmctl hosts bootstrap"] = second_bootstrap(lab, folder)
        medians = by_turns(asked, options.runs)
    table(f"{options.names} endpoints on {options.hosts} hosts", medians, "pdsh true", options.runs)


if __name__ == "__main__":
    main()
