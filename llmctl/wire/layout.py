"""Where everything lies below a host's workdir. Both sides build paths only from here.

<workdir>/                      default ~/.llmctl, mode 0700
  agent/<hash>.pyz              node agent and worker code, one file, named by its own hash
  agent/<hash>/                 the same unpacked: PYTHONPATH of the workers
  code/<tree-hash>/             pushed source, shared by runs, never run in; renamed into place when whole
  cache/                        verified copies of shards
  env/<hash>/                   an environment made by `hosts bootstrap`; whole once ready.json is there
  env/by/<request>              link to the environment that stands for what a job asks for
  wheels/<sha256>/<name>        files that environments are made from
  python/default                link to the interpreter for us, where the host's own `python3` does not do
  supervisor/<run-id>/          a supervisor that runs on this host (`--supervise-on`): its code, its log, and
                                a file that is locked while it lives
  drained.json                  Drained: its presence keeps new runs off this host
  runs/<run-id>/
    node.json                   NodeSpec: what this host was told (no secrets)
    code/                       this run's own copy of the tree: the job's cwd
    lease.json                  Lease, rewritten every lease interval while the agent lives
    events.jsonl                Event lines with a sequence number and the host's clock
    stop.json                   StopRequest: its presence asks the agent to end the run
    supervisor.json             Supervision: what the run's supervisor last said (wire/supervision.py)
    attempt-<n>/rank-<global>.log    stdout and stderr of one rank
    attempt-<n>/rank-<global>.json   RankExit, written when the rank has ended
    attempt-<n>/launcher.log         what torchrun itself said
    attempt-<n>/agent.log            the agent's own troubles, normally empty
    attempt-<n>/metrics.jsonl        metric lines (wire/metrics.py), written by rank 0
    attempt-<n>/consumed-<global>.jsonl  samples that a rank of the recipe trained on (wire/consumed.py)
    attempt-<n>/tensorboard/         event files of the built-in recipe
    attempt-<n>/progress-<global>.json   Progress: a rank's last finished step (wire/progress.py)
    attempt-<n>/stack-<global>.txt   Python stacks of a rank that was found hanging; else empty
    attempt-<n>/hang.json            Hang: what was seen of ranks that made no progress any more
    attempt-<n>/exit.json            NodeExit: the node's verdict, written last
    checkpoints/                only where no shared store is configured
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,47}-[0-9a-f]{4,12}\Z")
"""A run's id: its job's name and a few random hex digits. Safe as a file name and in a shell."""

DRAINED = "drained.json"

SUPERVISOR_LOCK = "lock"
"""In a supervisor's folder: held (flock) as long as it lives."""

TREE_HASH = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class HostLayout:
    """Paths below one host's workdir (absolute, POSIX)."""

    workdir: str

    @property
    def code(self) -> str:
        return posixpath.join(self.workdir, "code")

    @property
    def agents(self) -> str:
        return posixpath.join(self.workdir, "agent")

    @property
    def cache(self) -> str:
        return posixpath.join(self.workdir, "cache")

    @property
    def runs(self) -> str:
        return posixpath.join(self.workdir, "runs")

    @property
    def envs(self) -> str:
        return posixpath.join(self.workdir, "env")

    @property
    def wheels(self) -> str:
        return posixpath.join(self.workdir, "wheels")

    @property
    def pythons(self) -> str:
        return posixpath.join(self.workdir, "python")

    @property
    def supervisors(self) -> str:
        return posixpath.join(self.workdir, "supervisor")

    @property
    def drained(self) -> str:
        return posixpath.join(self.workdir, DRAINED)

    def tree(self, tree_hash: str) -> str:
        return posixpath.join(self.code, tree_hash)

    def agent(self, agent_hash: str) -> str:
        return posixpath.join(self.agents, agent_hash + ".pyz")

    def agent_dir(self, agent_hash: str) -> str:
        return posixpath.join(self.agents, agent_hash)

    def env(self, env_hash: str) -> str:
        return posixpath.join(self.envs, env_hash)

    def env_by(self, request: str) -> str:
        return posixpath.join(self.envs, "by", request)

    def wheel(self, sha256: str, name: str) -> str:
        return posixpath.join(self.wheels, sha256, name)

    def supervisor(self, run_id: str) -> str:
        return posixpath.join(self.supervisors, run_id)

    def run(self, run_id: str) -> RunLayout:
        return RunLayout(posixpath.join(self.runs, run_id))


@dataclass(frozen=True)
class RunLayout:
    """Paths below one run's directory on one host."""

    root: str

    @property
    def node_spec(self) -> str:
        return posixpath.join(self.root, "node.json")

    @property
    def code(self) -> str:
        return posixpath.join(self.root, "code")

    @property
    def lease(self) -> str:
        return posixpath.join(self.root, "lease.json")

    @property
    def events(self) -> str:
        return posixpath.join(self.root, "events.jsonl")

    @property
    def stop_request(self) -> str:
        return posixpath.join(self.root, "stop.json")

    @property
    def supervisor(self) -> str:
        return posixpath.join(self.root, "supervisor.json")

    @property
    def checkpoints(self) -> str:
        return posixpath.join(self.root, "checkpoints")

    def attempt(self, number: int) -> AttemptLayout:
        return AttemptLayout(posixpath.join(self.root, f"attempt-{number}"))


@dataclass(frozen=True)
class AttemptLayout:
    """Paths below one attempt's directory on one host."""

    root: str

    @property
    def launcher_log(self) -> str:
        return posixpath.join(self.root, "launcher.log")

    @property
    def agent_log(self) -> str:
        return posixpath.join(self.root, "agent.log")

    @property
    def metrics(self) -> str:
        return posixpath.join(self.root, "metrics.jsonl")

    @property
    def exit(self) -> str:
        return posixpath.join(self.root, "exit.json")

    @property
    def tensorboard(self) -> str:
        return posixpath.join(self.root, "tensorboard")

    def rank_log(self, rank: int) -> str:
        return posixpath.join(self.root, f"rank-{rank}.log")

    def consumed(self, rank: int) -> str:
        return posixpath.join(self.root, f"consumed-{rank}.jsonl")

    def rank_exit(self, rank: int) -> str:
        return posixpath.join(self.root, f"rank-{rank}.json")

    def progress(self, rank: int) -> str:
        return posixpath.join(self.root, f"progress-{rank}.json")

    def stack(self, rank: int) -> str:
        return posixpath.join(self.root, f"stack-{rank}.txt")

    @property
    def hang(self) -> str:
        return posixpath.join(self.root, "hang.json")
