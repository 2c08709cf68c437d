"""The agent: one daemon per run and host. It starts the launcher, watches it, and leaves nothing behind.

One thread and one wait (`tick`): signals wake it, everything else is looked at a few times a second.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Mapping

from llmctl.node import atomic, cgroup, kernel, launch, procs, rankfiles, rundir, tail, tree, verdict
from llmctl.node.fence import Fence
from llmctl.node.group import Group, Swept, remember_cgroup, sweep
from llmctl.node.hang import GRACE_S, Watchdog
from llmctl.node.journal import Journal
from llmctl.node.lease import LeaseKeeper
from llmctl.wire import environment as names
from llmctl.wire import progress
from llmctl.wire.codec import dumps
from llmctl.wire.records import EventKind, NodeExit, RankExit
from llmctl.wire.specs import NodeSpec
from llmctl.wire.states import NodeState

WATCHED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Blocked in agent and guard, and taken up one by one; SIGUSR1 only wakes: look for stop.json now."""

_POLL_S = 0.2
_STARTING_POLL_S = 0.05
_LEFTOVER_GRACE_S = 5.0
_AFTER_CHECKPOINT_S = 5.0
"""For what is left when the ranks have had their time for a last checkpoint."""


class Agent:
    """One attempt of a run on this host, from the first lease to the verdict."""

    def __init__(
        self,
        spec: NodeSpec,
        secrets: Mapping[str, str],
        host_env: Mapping[str, str],
        to_start: int,
        exit_file: atomic.Reserved,
    ) -> None:
        """`to_start`: descriptor on which `start` hears that the lease is held, or why it can't be."""
        self._spec = spec
        self._secrets = secrets
        self._host_env = host_env
        self._to_start = to_start
        self._exit_file = exit_file
        self._host = rundir.host_layout(spec.workdir)
        self._run = self._host.run(spec.run_id)
        self._attempt = self._run.attempt(spec.attempt)
        self._me = procs.ref_of(os.getpid())
        self._lease = LeaseKeeper(self._run, attempt=spec.attempt, every_s=spec.lease_s)
        self._fence = Fence(self._run, spec)
        self._launchers: set[int] = set()
        self._statuses: dict[int, int] = {}
        self._starts: dict[int, rankfiles.RankStart] = {}
        self._exits: dict[int, RankExit] = {}
        self._stopped: verdict.Stopped | None = None
        self._stoppable = True
        self._kill_at: float | None = None
        self._cgroup: str | None = None

    def run(self) -> int:
        """The whole life; 0 once the verdict is on disk."""
        kernel.adopt_orphans()
        if not self._report():
            return 1
        self._journal.add(EventKind.AGENT_STARTED, pid=self._me.pid)
        trouble = self._prepare_code()
        if not trouble and not self._stopped:
            self._launch()
            self._watch()
        self._end(trouble)
        return 0

    def _report(self) -> bool:
        """Take the lease and tell `start`."""
        try:
            self._journal = Journal(self._run, self._spec.attempt)
            self._hang = Watchdog(self._spec, self._attempt, self._journal)
            self._lease.take()
        except OSError as error:
            said: dict[str, object] = {"error": f"cannot write the lease: {error.strerror}"}
        else:
            said = {"pid": self._me.pid}
        os.write(self._to_start, json.dumps(said).encode() + b"\n")
        os.close(self._to_start)
        return "pid" in said

    # --- waiting ---

    def tick(self, seconds: float) -> None:
        """Wait for a signal, `seconds` at most, then do everything that is due."""
        taken = signal.sigtimedwait(WATCHED, seconds)
        asked = taken.si_signo if taken and taken.si_signo in (signal.SIGTERM, signal.SIGINT) else None
        self._reap()
        self._note_ranks()
        self._lease.renew()
        self._journal.flush()
        self._look_for_stop(asked)
        self._look_at_fence()

    def _reap(self) -> None:
        while (child := procs.reap_one()) is not None:
            self._statuses[child[0]] = child[1]

    def _look_for_stop(self, asked: int | None) -> None:
        """stop.json, or a signal alone: SIGINT is a stop for which the disk had no room, SIGTERM is what a
        host sends that is going down, and the run can go on from its checkpoint."""
        if self._stopped or not self._stoppable or not (asked or os.path.exists(self._run.stop_request)):
            return
        request = rundir.read_stop(self._run)
        self._stopped = verdict.Stopped(
            at=time.time(),
            reason=request.reason if request else f"agent got {kernel.signal_name(asked or signal.SIGTERM)}",
            grace_s=request.grace_s if request else self._spec.grace_s,
            preempted=request is None and asked == signal.SIGTERM,
            checkpoint=request is not None and request.checkpoint,
        )
        self._journal.add(EventKind.STOP_REQUESTED, detail=self._stopped.reason)

    def _look_at_fence(self) -> None:
        """Nobody may be told any more that this attempt is over, so it ends before another one begins."""
        if self._stopped or not self._stoppable or not self._fence.lapsed():
            return
        self._stopped = verdict.Stopped(at=time.time(), reason=self._fence.reason, grace_s=0.0, fenced=True)
        self._journal.add(EventKind.FENCED, detail=self._fence.reason)

    def _note_ranks(self) -> None:
        launch_spec = self._spec.launch
        for rank in range(launch_spec.first_rank, launch_spec.first_rank + launch_spec.nproc):
            if rank not in self._starts:
                self._note_start(rank)
            elif rank not in self._exits:
                self._note_exit(rank)
        if len(self._starts) == launch_spec.nproc and self._lease.state is NodeState.STARTING:
            self._lease.enter(NodeState.RUNNING)

    def _note_start(self, rank: int) -> None:
        start = rankfiles.read_start(self._attempt, rank)
        if start is not None:
            self._starts[rank] = start
            self._journal.add(EventKind.RANK_STARTED, rank=rank, pid=start.pid)

    def _note_exit(self, rank: int) -> None:
        ended = rankfiles.read_exit(self._attempt, rank)
        if ended is not None:
            self._record_exit(ended)

    def _record_exit(self, ended: RankExit) -> None:
        self._exits[ended.rank] = ended
        self._journal.add(
            EventKind.RANK_EXITED, rank=ended.rank, pid=ended.pid, code=ended.code, signal=ended.signal
        )

    # --- the run's own copy of the code ---

    def _prepare_code(self) -> str:
        """Empty when the cwd is ready, else why it can't be. A child copies, so that stop and lease go on."""
        if self._spec.tree is None or os.path.isdir(self._run.code):
            return ""
        from_child, to_agent = os.pipe()
        child = os.fork()
        if child == 0:
            self._copy_code(to_agent)
        os.close(to_agent)
        while child not in self._statuses and not self._stopped:
            self.tick(_POLL_S)
        if child not in self._statuses:
            self._abandon_copy(child)
        with os.fdopen(from_child, "rb") as pipe:
            trouble = pipe.read(4096).decode(errors="replace")
        if self._statuses.get(child) == 0:
            self._journal.add(EventKind.CODE_READY)
            return ""
        return "" if self._stopped else f"code: {trouble or 'the copy of the tree was killed'}"

    def _copy_code(self, to_agent: int) -> None:
        """In the child: never returns."""
        code = 1
        try:
            os.setpgid(0, 0)
            kernel.restore_signals()
            kernel.die_with_parent()
            source = self._host.tree(self._spec.tree or "")
            tree.copy_tree(source, self._run.code)
            code = 0
        except OSError as error:
            os.write(to_agent, (error.strerror or str(error)).encode()[:4096])
        finally:
            os._exit(code)

    def _abandon_copy(self, child: int) -> None:
        for target in (-child, child):
            try:
                os.kill(target, signal.SIGKILL)
            except ProcessLookupError:
                continue
        while child not in self._statuses:
            self.tick(_STARTING_POLL_S)
        shutil.rmtree(tree.partial_copy(self._run.code), ignore_errors=True)

    # --- launcher ---

    def _launch(self) -> None:
        self._cgroup = cgroup.create(f"llmctl-{self._spec.run_id}-{self._me.pid}")
        remember_cgroup(self._attempt, self._cgroup)
        env = launch.job_environment(
            self._spec, host_env=self._host_env, secrets=self._secrets, cores=len(os.sched_getaffinity(0))
        )
        if self._spec.launch.launcher == launch.DIRECT:
            command = launch.rank_command(self._spec, self._me)
            for local_rank in range(self._spec.launch.nproc):
                self._spawn(command, {**env, **launch.rank_environment(self._spec, local_rank)})
        else:
            self._spawn(launch.torchrun_command(self._spec, self._me), env)

    def _spawn(self, command: tuple[str, ...], env: dict[str, str]) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                self._become(command, env)
            except OSError as error:
                os.write(2, f"cannot start {command[0]}: {error.strerror}\n".encode())
            finally:
                os._exit(127)
        self._launchers.add(pid)
        self._journal.add(EventKind.LAUNCHER_STARTED, pid=pid, detail=self._spec.launch.launcher)

    def _become(self, command: tuple[str, ...], env: dict[str, str]) -> None:
        """In the child: the launcher, in its own process group, dying with the agent."""
        os.setpgid(0, 0)
        log = os.open(self._attempt.launcher_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(self._run.code if self._spec.tree else self._run.root)
        if self._cgroup:
            cgroup.join(self._cgroup)
        kernel.restore_signals()
        kernel.die_with_parent()
        if os.getppid() == self._me.pid:
            os.execvpe(command[0], command, env)  # noqa: S606

    def _watch(self) -> None:
        """Until the launcher has ended, or must be ended by `_end`."""
        while (running := self._running_launchers()) and not self._stopped and not self._over():
            self.tick(_STARTING_POLL_S if len(self._starts) < self._spec.launch.nproc else _POLL_S)
            self._hang.look(self._starts)
        self._stoppable = bool(running)
        if not running:
            return
        if self._stopped and self._stopped.checkpoint:
            self._await_checkpoint(self._stopped.grace_s)
        self._ask(self._running_launchers())
        while self._running_launchers() and self._patience() > 0:
            self.tick(_STARTING_POLL_S)

    def _await_checkpoint(self, seconds: float) -> None:
        """SIGTERM to the ranks themselves: torchrun would end them when its own, shorter patience is over."""
        for start in self._starts.values():
            seen = procs.stat(start.pid)
            mark = f"{names.RUN_DIR}={self._run.root}".encode()
            if seen is not None and procs.with_environment((mark,), (start.pid,)):
                procs.send(seen.ref, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while self._running_launchers() and len(self._exits) < len(self._starts):
            if time.monotonic() > deadline:
                self._journal.add(EventKind.STOP_REQUESTED, detail="the time for a last checkpoint is over")
                break
            self.tick(_STARTING_POLL_S)

    def _ask(self, running: set[int]) -> None:
        """SIGTERM to torchrun or to the shims only: they pass it on, so that each rank gets it once."""
        self._kill_at = time.monotonic() + self._grace()
        for pid in running:
            os.kill(pid, signal.SIGTERM)  # our own children, not yet reaped: the pid is theirs for certain

    def _running_launchers(self) -> set[int]:
        return {pid for pid in self._launchers if pid not in self._statuses}

    def _over(self) -> bool:
        """The ranks hang, or one of several shims of ours ended badly: the others would wait for ever."""
        return bool(self._hang.reason) or any(self._statuses.get(pid, 0) != 0 for pid in self._launchers)

    def _grace(self) -> float:
        if self._hang.reason and not self._stopped:
            return min(GRACE_S, self._spec.grace_s)
        if self._stopped and self._stopped.checkpoint:
            return _AFTER_CHECKPOINT_S
        return self._stopped.grace_s if self._stopped else self._spec.grace_s

    def _patience(self) -> float:
        """Seconds until SIGKILL; leftovers of an end that nobody asked for get a short grace."""
        return _LEFTOVER_GRACE_S if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())

    # --- the end ---

    def _end(self, trouble: str) -> None:
        swept = self._sweep()
        self._reap()
        self._note_ranks()
        self._judge_lost_ranks()
        code, name = self._launcher_result()
        if code is not None:
            self._journal.add(EventKind.LAUNCHER_EXITED, code=code, signal=name)
        if swept.killed:
            self._journal.add(EventKind.KILLED, detail=f"{swept.killed} processes needed SIGKILL")
        if not trouble and code:
            trouble = " ".join(tail.last_lines(self._attempt.launcher_log, 1))
        seen = verdict.Seen(
            code=code,
            signal=name,
            ranks=tuple(self._exits[rank] for rank in sorted(self._exits)),
            left=swept.left,
            stopped=self._stopped,
            trouble=trouble,
            hung=self._hang.reason,
            final=self._spec.watch.policy == progress.STOP,
        )
        self._conclude(verdict.of_node(seen, time.time()))

    def _sweep(self) -> Swept:
        """Nothing of the run may outlive it."""
        group = Group(
            run_id=self._spec.run_id, run_dir=self._run.root, roots=(self._me.pid,), cgroup=self._cgroup
        )
        swept = sweep(group, grace_s=min(self._patience(), _LEFTOVER_GRACE_S), tick=self.tick)
        cgroup.remove(self._cgroup)
        return swept

    def _judge_lost_ranks(self) -> None:
        """A rank whose shim was killed has no record: its status came to us, who adopt orphans."""
        for rank, start in self._starts.items():
            if rank in self._exits:
                continue
            ended = rankfiles.ended(start, self._statuses.get(start.pid, signal.SIGKILL), time.time())
            self._record_exit(ended)
            try:
                atomic.write(self._attempt.rank_exit(rank), dumps(ended))
            except OSError:
                continue  # exit.json, which has its room already, carries it too

    def _launcher_result(self) -> tuple[int | None, str | None]:
        """The first bad one of the launchers that ended; None where none was started."""
        results = [kernel.exit_code(self._statuses.get(pid, signal.SIGKILL)) for pid in self._launchers]
        if not results:
            return None, None
        return next((result for result in results if result[0] != 0), results[0])

    def _conclude(self, ended: NodeExit) -> None:
        self._journal.add(EventKind.ENDED, code=ended.code, detail=f"{ended.state.value}: {ended.reason}")
        self._lease.enter(ended.state)
        self._exit_file.commit(dumps(ended), durable=True)
