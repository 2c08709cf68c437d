"""Make hosts ready: look, plan, then carry out. A host that is ready costs one round trip, no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.backends.provision import Provisioner
from llmctl.controller.config.requirements import Requirements
from llmctl.controller.config.types import Host
from llmctl.controller.execute import pythons
from llmctl.controller.execute.facts import facts_of, master_target
from llmctl.controller.execute.fanout import Member, fan_out, peer_addresses
from llmctl.controller.execute.identity import Recogniser
from llmctl.controller.execute.locking import Locker
from llmctl.controller.plan.bootstrap import (
    Choice,
    Target,
    choose,
    imports,
    index_of,
    name_of,
    room_problem,
    standing,
    steps,
    system_problem,
)
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.transport.files import put_file
from llmctl.controller.transport.pool import Connections
from llmctl.errors import LlmctlError
from llmctl.wire.environments import Blob, EnvReply, EnvRequest, HaveRequest, Package
from llmctl.wire.layout import HostLayout

T = TypeVar("T")
Told = Callable[[str, str], None]
"""(host, what it does now); from several threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One host's plan: what it is, what it is to become, and the steps to there (none: it is ready)."""

    host: Host
    facts: HostFacts
    choice: Choice | None
    env: str = ""
    packages: tuple[Package, ...] = ()
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What became of one host. `changed` is False where everything stood already; `sent` in bytes."""

    env: str
    python: str
    changed: bool
    packages: int = 0
    bytes: int = 0
    sent: int = 0
    source: str | None = None
    seconds: float = 0.0


class Bootstrap:
    """One bootstrap of some hosts for one request.

    Args:
        wheelhouse: packages come from here. fan_out: from here to one host, then host to host.
        upgrade: an environment that stands is kept only where a new lock gives the same.
    """

    def __init__(
        self,
        wanted: Requirements,
        connections: Connections,
        archive: AgentArchive,
        locker: Locker,
        *,
        wheelhouse: bool = False,
        fan_out: bool = False,
        upgrade: bool = False,
    ) -> None:
        self._wanted = wanted
        self._connections = connections
        self._archive = archive
        self._locker = locker
        self._wheelhouse = wheelhouse or fan_out
        self._fan_out = fan_out
        self._upgrade = upgrade

    def plan(self, hosts: Sequence[Host], recogniser: Recogniser) -> dict[str, Task | LlmctlError]:
        """What is to be done on each host; nothing is changed there. One result each."""

        def look(host: Host) -> tuple[HostFacts, Choice | None]:
            facts = facts_of(host, self._connections, target=master_target(hosts[0]), full=True)
            recogniser.check(host, facts.more, self._connections)
            if self._wanted.kind == "system":
                if problem := system_problem(host, facts, self._wanted):
                    raise problem
                return facts, None
            return facts, choose(host, facts, self._wanted, anew=self._upgrade)

        seen = self._connections.each(hosts, look)
        locks = self._locks([one for one in seen.values() if not isinstance(one, LlmctlError)])
        return {host.name: self._task(host, seen[host.name], locks) for host in hosts}

    def carry_out(self, tasks: Mapping[str, Task], told: Told) -> dict[str, Made | LlmctlError]:
        """Every step of every host; one result each."""
        waiting = {name: task for name, task in tasks.items() if task.steps}
        results: dict[str, Made | LlmctlError] = {
            name: _as_it_stands(task) for name, task in tasks.items() if not task.steps
        }
        if not waiting:
            return results
        pip = self._locker.pip()
        prepared = _split(self._each(waiting, lambda task: self._with_python(task, told)), results)
        sent: dict[str, tuple[int, str | None]] = {}
        if self._fan_out:
            prepared, sent = self._hand_round(prepared, pip, results, told)

        def one(task: Task) -> Made:
            bytes_sent, source = sent.get(task.host.name) or (self._send(task, pip, told), None)
            told(task.host.name, f"installing {len(task.packages)} packages")
            reply = self._provisioner(task).environment(self._request(task, pip))
            return _made(task, reply, bytes_sent, source)

        results.update(self._each(prepared, one))
        return {name: results[name] for name in tasks}

    def _locks(
        self, seen: Sequence[tuple[HostFacts, Choice | None]]
    ) -> dict[Target, tuple[Package, ...] | LlmctlError]:
        """One lock for each kind of host that has anything to do."""
        targets = {choice.target for _, choice in seen if choice is not None and choice.stands is None}
        found: dict[Target, tuple[Package, ...] | LlmctlError] = {}
        for target in sorted(targets, key=lambda one: one.words):
            try:
                packages = self._locker.lock(self._wanted, target)
                found[target] = self._locker.fetch(packages, target) if self._wheelhouse else packages
            except LlmctlError as error:
                found[target] = error
        return found

    def _task(
        self,
        host: Host,
        seen: tuple[HostFacts, Choice | None] | LlmctlError,
        locks: Mapping[Target, tuple[Package, ...] | LlmctlError],
    ) -> Task | LlmctlError:
        if isinstance(seen, LlmctlError):
            return seen
        facts, choice = seen
        if choice is None or choice.stands is not None:
            env = choice.stands.hash if choice and choice.stands else ""
            return Task(host=host, facts=facts, choice=choice, env=env)
        packages = locks[choice.target]
        if isinstance(packages, LlmctlError):
            return packages
        return self._to_make(host, facts, choice, packages)

    def _to_make(
        self, host: Host, facts: HostFacts, choice: Choice, packages: tuple[Package, ...]
    ) -> Task | LlmctlError:
        env = name_of(choice.target, packages, self._wanted)
        if stands := standing(facts, self._wanted, env):
            return Task(host=host, facts=facts, choice=replace(choice, stands=stands), env=env)
        if problem := room_problem(host, facts, packages):
            return problem
        todo = steps(choice, facts, env, packages, wheelhouse=self._wheelhouse, fan_out=self._fan_out)
        return Task(host=host, facts=facts, choice=choice, env=env, packages=packages, steps=tuple(todo))

    def _with_python(self, task: Task, told: Told) -> Task:
        """The same task with an interpreter that is there."""
        choice = task.choice
        if choice is None or (choice.python and not choice.default):
            return task
        transport, workdir = self._connections.get(task.host.name), task.facts.workdir
        python = choice.python
        if python is None:
            told(task.host.name, f"installing Python {choice.target.python}")
            python = pythons.install(transport, task.host, workdir, choice.target, self._locker)
        if choice.default:
            pythons.make_default(transport, workdir, python)
        return replace(task, choice=replace(choice, python=python))

    def _hand_round(
        self, tasks: dict[str, Task], pip: Blob, results: dict[str, Made | LlmctlError], told: Told
    ) -> tuple[dict[str, Task], dict[str, tuple[int, str | None]]]:
        """The wheels by fan-out, one tree for each kind of host; those that have them, and what came."""
        sent: dict[str, tuple[int, str | None]] = {}
        for target in {task.choice.target for task in tasks.values() if task.choice}:
            group = {n: task for n, task in tasks.items() if task.choice and task.choice.target == target}
            for name in group:
                told(name, "getting wheels")
            blobs = _blobs(next(iter(group.values())), pip)
            members = [_member(task) for task in group.values()]
            delivered = fan_out(members, blobs, self._locker.path, self._connections, self._archive)
            for name, outcome in delivered.items():
                if isinstance(outcome, LlmctlError):
                    results[name] = outcome
                else:
                    sent[name] = (outcome.bytes, outcome.source)
        return {name: task for name, task in tasks.items() if name in sent}, sent

    def _send(self, task: Task, pip: Blob, told: Told) -> int:
        """What of the wheels is missing there, from here; bytes sent."""
        blobs = _blobs(task, pip) if self._wheelhouse else [pip]
        missing = set(self._provisioner(task).wheels(HaveRequest(blobs=tuple(blobs))).missing)
        transport = self._connections.get(task.host.name)
        layout = HostLayout(task.facts.workdir)
        for number, blob in enumerate(blob for blob in blobs if blob.sha256 in missing):
            told(task.host.name, f"sending wheel {number + 1} of {len(missing)}")
            put_file(transport, self._locker.path(blob), layout.wheel(blob.sha256, blob.name))
        return sum(blob.size for blob in blobs if blob.sha256 in missing)

    def _request(self, task: Task, pip: Blob) -> EnvRequest:
        build = task.choice.target.build if task.choice else ""
        index = index_of(build)
        return EnvRequest(
            request=self._wanted.key,
            hash=task.env,
            packages=task.packages,
            pip=pip,
            build=build,
            offline=self._wheelhouse,
            indexes=(index,) if index else (),
            verify=imports(self._wanted),
        )

    def _provisioner(self, task: Task) -> Provisioner:
        """The agent, run by the Python that the environment is made of."""
        host = replace(_host(task), workdir=task.facts.workdir)
        return Provisioner(self._connections.get(task.host.name), host, self._archive)

    def _each(self, tasks: Mapping[str, Task], fn: Callable[[Task], T]) -> dict[str, T | LlmctlError]:
        hosts = [task.host for task in tasks.values()]
        return self._connections.each(hosts, lambda host: fn(tasks[host.name]))


def _host(task: Task) -> Host:
    python = task.choice.python if task.choice else None
    return replace(task.host, python=python or task.host.python)


def _blobs(task: Task, pip: Blob) -> list[Blob]:
    return [pip, *(Blob(sha256=one.sha256[0], size=one.size, name=one.file) for one in task.packages)]


def _member(task: Task) -> Member:
    return Member(
        host=_host(task),
        folder=HostLayout(task.facts.workdir).wheels,
        addresses=peer_addresses(task.host, task.facts),
    )


def _split(
    outcomes: Mapping[str, Task | LlmctlError], results: dict[str, Made | LlmctlError]
) -> dict[str, Task]:
    """Those that can go on; the others' errors go to `results`."""
    going = {}
    for name, outcome in outcomes.items():
        if isinstance(outcome, Task):
            going[name] = outcome
        else:
            results[name] = outcome
    return going


def _as_it_stands(task: Task) -> Made:
    stands = task.choice.stands if task.choice else None
    if stands is None:
        python = task.facts.python.executable if task.facts.python else task.host.python
        return Made(env="system", python=python, changed=False)
    return Made(
        env=stands.hash, python=stands.path, changed=False, packages=stands.packages, bytes=stands.bytes
    )


def _made(task: Task, reply: EnvReply, sent: int, source: str | None) -> Made:
    return Made(
        env=reply.hash,
        python=reply.python,
        changed=reply.built,
        packages=len(task.packages),
        bytes=reply.bytes,
        sent=sent,
        source=source,
        seconds=reply.seconds,
    )
