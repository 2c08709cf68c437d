"""Drive `llmctl` as a person does: real command, own HOME, real hosts; only the eyes are the test's."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.lab.hosts import Lab

TIMEOUT_S = 120.0


def until(belief: Callable[[], Any], *, within: float = 60.0, what: str = "") -> Any:
    """Poll until `belief` is true; its value. The deadline is far: only a broken belief meets it."""
    deadline = time.monotonic() + within
    while not (value := belief()):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.05)
    return value


@dataclass(kw_only=True)
class Cluster:
    """A folder with hosts.yaml, and a way to run `llmctl` there. Local hosts, or those of a lab.

    Attributes:
        names: of the hosts, one letter each.
    """

    folder: Path
    lab: Lab | None = None
    names: str = "ab"
    home: Path = field(init=False)
    workname: str = field(init=False)

    def __post_init__(self) -> None:
        self.workname = f".llmctl-{secrets.token_hex(4)}"  # the lab's disks outlive a test
        self.folder.mkdir(parents=True, exist_ok=True)
        self.home = self.folder / "home"
        self.home.mkdir(exist_ok=True)
        self.write_hosts()

    def write_hosts(self, **changes: Mapping[str, Any]) -> None:
        """hosts.yaml with all hosts; `changes` replace keys of one of them."""
        if self.lab is None:
            hosts = [
                {"name": n, "addr": "local", "workdir": str(self.folder / f"host-{n}")} for n in self.names
            ]
        else:
            workdir = f"~/{self.workname}"
            hosts = [
                {"name": n, "addr": a, "workdir": workdir}
                for n, a in zip(self.names, self.lab.names, strict=False)
            ]
        for host in hosts:
            host.update({"python": sys.executable, "slots": 1, **changes.get(host["name"], {})})
        document = {"version": 1, "pools": {"main": {"hosts": hosts}}}
        (self.folder / "hosts.yaml").write_text(yaml.safe_dump(document))

    def write_job(self, **keys: Any) -> None:
        document = {"version": 1, "name": "t", **keys}
        (self.folder / "job.yaml").write_text(yaml.safe_dump(document))

    def write_script(self, text: str, *, name: str = "train.py", **keys: Any) -> None:
        """A job that runs this script; `keys` go into the job."""
        code = self.folder / "code"
        code.mkdir(exist_ok=True)
        (code / name).write_text(text)
        train = {"script": name, **keys.pop("train", {})}
        self.write_job(**{"code": {"path": "code"}, "train": train, **keys})

    def env(self, **more: str) -> dict[str, str]:
        """An environment with an own, at first empty home, as on a fresh machine."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LLMCTL_", "XDG_"))}
        ssh = {"LLMCTL_SSH_CONFIG": str(self.lab.ssh_config)} if self.lab else {}
        return {**kept, **ssh, "HOME": str(self.home), "COLUMNS": "200", **more}

    def run(
        self,
        *argv: str,
        expect: int | None = 0,
        env: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """`llmctl ARGV`; fails the test with everything printed when the exit code is another."""
        done = subprocess.run(
            self.argv(*argv),
            cwd=self.folder,
            env=self.env(**(env or {})),
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if expect is not None:
            told = f"exit {done.returncode}, not {expect}\n{done.stdout}\n{done.stderr}"
            assert done.returncode == expect, told
        assert not re.search(r"(?m)^Traceback", done.stderr), done.stderr
        return done

    def popen(self, *argv: str, **kw: Any) -> subprocess.Popen[str]:
        """`llmctl ARGV` in the background."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kw}
        return subprocess.Popen(self.argv(*argv), cwd=self.folder, env=self.env(), **pipes)

    def json(self, *argv: str, expect: int | None = 0) -> dict[str, Any]:
        """The one document that `-o json` prints."""
        return dict(json.loads(self.run(*argv, "-o", "json", expect=expect).stdout))

    def argv(self, *argv: str) -> list[str]:
        command = [sys.executable, "-m", "llmctl", *argv]
        return command if self.lab is None else ["nsenter", f"--net={self.lab.net}", "--", *command]

    def start(self, *argv: str) -> str:
        """`train -d`; the run's id."""
        return self.run("train", "-d", *argv).stdout.strip()

    def state(self, run_id: str) -> str:
        return str(self.json("status", run_id)["run"]["state"])

    def until_state(self, run_id: str, *states: str, within: float = 60.0) -> str:
        return str(until(lambda: self._one_of(run_id, states), within=within, what=f"{run_id} {states}"))

    def verdict(self, run_id: str) -> dict[str, Any]:
        """What the supervisor tells of its run; its last word comes a moment after the last ranks' end."""
        found = until(lambda: self._last_word(run_id), what=f"the verdict of {run_id}'s supervisor")
        return dict(found)

    def _last_word(self, run_id: str) -> dict[str, Any] | None:
        told: dict[str, Any] | None = self.json("status", run_id, "--all")["run"]["supervision"]
        return told if told and told["phase"] == "ended" else None

    def _one_of(self, run_id: str, states: Sequence[str]) -> str | None:
        found = self.state(run_id)
        return found if found in states else None

    # The hosts themselves, beside llmctl: to look at the truth and to break things

    def workdir(self, name: str) -> Path:
        """A host's workdir, as this machine sees it."""
        if self.lab is None:
            return self.folder / f"host-{name}"
        return self.lab.path(self.lab_name(name), f"/root/{self.workname}")

    def lab_name(self, name: str) -> str:
        assert self.lab is not None
        return self.lab.names[self.names.index(name)]

    def run_dir(self, name: str, run_id: str) -> Path:
        return self.workdir(name) / "runs" / run_id

    def processes(self, run_id: str) -> list[int]:
        """Every process on this machine, in whatever namespace, that carries the run's id."""
        mark = f"LLMCTL_RUN_ID={run_id}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if mark in (folder / "environ").read_bytes().split(b"\0"):
                        found.append(int(folder.name))
                except OSError:
                    continue
        return found

    def agent_pid(self, name: str, run_id: str) -> int:
        """The agent's pid as this machine counts."""
        lease = json.loads((self.run_dir(name, run_id) / "lease.json").read_text())
        return self.outside_pid(name, int(lease["agent_pid"]))

    def outside_pid(self, name: str, pid: int) -> int:
        if self.lab is None:
            return pid
        inner = Path(f"/proc/{self.lab.pid(self.lab_name(name))}/ns/pid").readlink()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if (folder / "ns/pid").readlink() != inner:
                        continue
                    ids = _status(folder)["NSpid"].split()
                except OSError:
                    continue
                if int(ids[-1]) == pid:
                    return int(folder.name)
        raise AssertionError(f"no process {pid} on {name}")

    def copy_to_hosts(self, source: Path, dest: str) -> None:
        """Put a folder on every host of the lab, as a shared mount or a user's own copy would."""
        assert self.lab is not None
        for name in self.lab.names:
            shutil.copytree(source, self.lab.path(name, dest), dirs_exist_ok=True)


def _status(folder: Path) -> dict[str, str]:
    lines = (folder / "status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
