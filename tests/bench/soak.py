"""Hours of random faults from a seed, over four SSH hosts; then the run is held against an undisturbed one.

    sudo python -m tests.bench.soak [--minutes 120] [--seed 1]

One fault at a time: a rank or an agent is killed, a rank stands still, a host is powered off, frozen or cut
off (both ways, one way, from us only, from its peers only), the supervisor is killed and replaced by
`resume`. After each the run must train on and save within the patience. At the end: every loss of every
attempt is that of the undisturbed run at the same step, the audit finds each sample used once, and no process
is left. Exit 0 only then. What happened stands in `soak-<seed>.jsonl`. Root: the hosts are namespaces here.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.controller.collect.lineage import lineage_of
from llmctl.storage.corpus.shard import shard
from tests.integration.cluster import Cluster, until
from tests.integration.test_attempts_local import supervisor_pid
from tests.lab.hosts import Lab

HOSTS = "abcd"
SHARDS = "/srv/shards-soak"
PATIENCE_S = 300.0
TOLERANCE = 5e-3
"""Of a loss, relative: two ranks add up in another order than four."""

MODEL = {"size": "tiny", "layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn_dim": 64}
RECIPE = {
    "steps": 1_000_000,
    "global_batch": 12,
    "micro_batch": 1,
    "sequence_length": 32,
    "precision": "fp32",
}
JOB: dict[str, Any] = {
    "data": {"uri": SHARDS},
    "recipe": {"model": MODEL, "tensorboard": False, **RECIPE},
    "train": {"launcher": "direct"},
    "restarts": {"max": 1000, "backoff_s": 0.2, "min_nodes": 2, "lease_s": 15},
    "watch": {"hang": "20s"},
}


@dataclass(kw_only=True)
class Soak:
    """One run and what is done to it."""

    cluster: Cluster
    lab: Lab
    chance: random.Random
    log: Path
    run: str = ""
    faults: list[dict[str, Any]] = field(default_factory=list)

    def view(self) -> dict[str, Any]:
        """The run as its hosts see it; empty while none can be asked."""
        done = self.cluster.run("status", self.run, "--all", "-o", "json", expect=None)
        return dict(json.loads(done.stdout).get("run", {})) if done.returncode == 0 else {}

    def until_it_trains(self, attempt: int = 1) -> dict[str, Any]:
        """Until this attempt, or a later one, has saved a checkpoint that there was not, and trains."""
        before = (self.view().get("checkpoint_step") or 0) if self.faults else 0

        def trains() -> dict[str, Any] | None:
            view = self.view()
            if (view.get("supervision") or {}).get("phase") == "ended":
                raise AssertionError(f"the run is lost: {view['state']}: {view.get('note')}")
            saved, step = view.get("checkpoint_step") or 0, view.get("step") or 0
            fits = view.get("state") == "running" and view.get("attempt", 0) >= attempt
            return view if fits and saved > before and step >= saved else None

        return dict(until(trains, within=PATIENCE_S, what=f"it trains on after {self.faults[-1:]}"))

    def fault(self) -> None:
        """One, chosen by chance; a host that was taken away is given back after a while."""
        view = until(self.runs, within=PATIENCE_S, what="an attempt runs")
        on = running(view)
        kind, host = self.chance.choice(sorted(FAULTS)), self.chance.choice(on)
        seconds = self.chance.uniform(5, 40)
        noted = {
            "at": time.time(),
            "kind": kind,
            "host": host,
            "step": view["step"],
            "attempt": view["attempt"],
        }
        self.faults.append(noted)
        FAULTS[kind](self, host)
        if kind in PASSING:
            noted["seconds"] = round(seconds, 1)
            time.sleep(seconds)  # the fault itself takes that long
            self.lab.restore()
        began = time.monotonic()
        after = self.until_it_trains(noted["attempt"] + (kind in FATAL))
        noted |= {"recovered_s": round(time.monotonic() - began, 1), "then": after["attempt"]}
        with self.log.open("a") as file:
            file.write(json.dumps(noted) + "\n")
        print(noted, file=sys.stderr, flush=True)

    def runs(self) -> dict[str, Any] | None:
        """The run while it has ranks; none in the moment in which it takes hosts back in."""
        view = self.view()
        return view if running(view) else None

    def node(self, host: str) -> str:
        return self.cluster.lab_name(host)


def running(view: dict[str, Any]) -> list[str]:
    return [node["host"] for node in view.get("nodes", []) if node["state"] == "running"]


def kill_rank(soak: Soak, host: str, number: int = signal.SIGKILL) -> None:
    """The rank that runs on this host."""
    inside = Path(f"/proc/{soak.lab.pid(soak.node(host))}/ns/pid").readlink()
    for pid in soak.cluster.processes(soak.run):
        folder = Path("/proc", str(pid))
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            here = (folder / "ns/pid").readlink() == inside
        except OSError:
            continue
        if here and words[1:4] == [b"-u", b"-m", b"llmctl.worker.train"]:
            os.kill(pid, number)


def kill_agent(soak: Soak, host: str) -> None:
    try:
        os.kill(soak.cluster.agent_pid(host, soak.run), signal.SIGKILL)
    except ProcessLookupError:
        return


def kill_supervisor(soak: Soak, _host: str) -> None:
    os.kill(supervisor_pid(soak.run), signal.SIGKILL)
    soak.cluster.run("resume", "-d", "--take-over", soak.run)


FAULTS: dict[str, Callable[[Soak, str], None]] = {
    "kill rank": kill_rank,
    "freeze rank": lambda soak, host: kill_rank(soak, host, signal.SIGSTOP),
    "kill agent": kill_agent,
    "kill supervisor": kill_supervisor,
    "power off": lambda soak, host: soak.lab.poweroff(soak.node(host)),
    "freeze host": lambda soak, host: soak.lab.freeze(soak.node(host)),
    "cut off": lambda soak, host: soak.lab.partition(soak.node(host)),
    "cut off, in": lambda soak, host: soak.lab.partition(soak.node(host), direction="in"),
    "cut off, out": lambda soak, host: soak.lab.partition(soak.node(host), direction="out"),
    "cut off from us": lambda soak, host: soak.lab.partition(soak.node(host), between="ctl"),
    "cut off from peers": lambda soak, host: soak.lab.partition(soak.node(host), between="peers"),
}
PASSING = ("power off", "freeze host", *(kind for kind in FAULTS if kind.startswith("cut off")))
FATAL = ("kill rank", "freeze rank", "kill agent")
"""No attempt outlives them."""


def disturbed(soak: Soak, seconds: float) -> int:
    """Faults for so long; the last step that a committed checkpoint holds."""
    soak.cluster.write_job(**JOB, checkpoint=saves(soak, "soak"))
    soak.run = soak.cluster.start()
    try:
        soak.until_it_trains()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            soak.fault()
        return int(soak.view()["checkpoint_step"])
    except AssertionError:
        print(soak.cluster.run("status", soak.run, "--all", expect=None).stdout, file=sys.stderr)
        raise
    finally:
        soak.lab.restore()
        soak.cluster.run("stop", soak.run, expect=None)


def undisturbed(soak: Soak, step: int, within_s: float) -> str:
    """The same job until it is past that step; its id."""
    cluster = soak.cluster
    cluster.write_job(**JOB, checkpoint=saves(soak, "plain"))
    run = cluster.start()
    try:
        until(
            lambda: (cluster.json("status", run)["run"]["step"] or 0) > step,
            within=within_s,
            what=f"step {step}",
        )
    finally:
        cluster.run("stop", run)
    return run


def saves(soak: Soak, name: str) -> dict[str, Any]:
    return {"every": 10, "keep": 2, "uri": f"/mnt/shared/{soak.cluster.workname}-{name}"}


def losses(cluster: Cluster, run: str) -> dict[int, dict[int, float]]:
    """By attempt and step."""
    home = cluster.folder / f"home-{run}"
    cluster.run("pull", run, "--dest", str(home), "--checkpoints", "none")
    return {attempt: dict(steps) for attempt, steps in lineage_of(home).losses.items()}


def verdict(soak: Soak, saved: int, plain: str) -> list[str]:
    """What does not hold; prints what was looked at."""
    wrong = []
    found, want = losses(soak.cluster, soak.run), losses(soak.cluster, plain)[1]
    gaps = [
        (math.inf if step not in want else abs(loss - want[step]) / abs(want[step]), attempt, step)
        for attempt, steps in found.items()
        for step, loss in steps.items()
        if step <= saved
    ]
    seen = {step for _, _, step in gaps}
    worst = max(gaps)
    same = sum(gap == 0 for gap, _, _ in gaps)
    print(
        f"loss      {len(gaps)} values of steps 1-{saved} over {len(found)} attempts, "
        f"{same} the same to the bit, largest relative difference {worst[0]:.1e} "
        f"(attempt {worst[1]}, step {worst[2]})"
    )
    if worst[0] > TOLERANCE or seen != set(range(1, saved + 1)):
        wrong.append("the loss curve is not that of the undisturbed run")
    audit = soak.cluster.json("data", "audit", soak.run, expect=None)
    print(f"ledger    {audit.get('verdict')}; findings: {audit.get('findings')}")
    if (audit.get("verdict"), audit.get("findings")) != ("ok", []):
        wrong.append("the ledger is not exact")
    left = [pid for run in (soak.run, plain) for pid in soak.cluster.processes(run)]
    print(f"left      {len(left)} processes")
    if left:
        wrong.append(f"processes are left: {left}")
    return wrong


def table(soak: Soak) -> None:
    """Faults by kind."""
    print("\n| fault | how often | attempts that it cost | recovered after s, median | max |")
    print("|---|---|---|---|---|")
    for kind in FAULTS:
        mine = [one for one in soak.faults if one["kind"] == kind]
        if mine:
            took = sorted(one["recovered_s"] for one in mine)
            cost = sum(one["then"] - one["attempt"] for one in mine)
            print(f"| {kind} | {len(mine)} | {cost} | {took[len(took) // 2]} | {took[-1]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    with Lab.up(len(HOSTS)) as lab, tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(folder=Path(folder) / "c", lab=lab, names=HOSTS)
        shard([str(Path(sysconfig.get_path("stdlib")) / "json")], str(Path(folder) / "shards"))
        cluster.copy_to_hosts(Path(folder) / "shards", SHARDS)
        chance = random.Random(args.seed)  # noqa: S311 - faults by chance, no secret
        log = Path(f"soak-{args.seed}.jsonl")
        soak = Soak(cluster=cluster, lab=lab, chance=chance, log=log)
        saved = disturbed(soak, 60 * args.minutes)
        plain = undisturbed(soak, saved, within_s=60 * args.minutes + PATIENCE_S)
        table(soak)
        wrong = verdict(soak, saved, plain)
    print(
        f"{(time.monotonic() - began) / 60:.1f} minutes, seed {args.seed}: {'; '.join(wrong) or 'all held'}"
    )
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
