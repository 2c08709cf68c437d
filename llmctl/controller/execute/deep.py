"""`hosts check --deep`: one program per host does for seconds what a run would do, all hosts at once.

Like `netmap.py` it tells all hosts of a round what to do before it hears the first. A host that does not
answer is told by name; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from llmctl.controller.backends.agent import AgentClient
from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.backends.talk import EndedError, Talk
from llmctl.controller.config.types import Host
from llmctl.controller.plan.deep import (
    Deep,
    DeepResults,
    PairResult,
    StoreResult,
    first_pairs,
    second_pairs,
)
from llmctl.controller.plan.network import interface, own_address
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.transport.pool import Connections
from llmctl.errors import LlmctlError
from llmctl.wire.deep import MATMUL, REDUCE, SERVE, DeepHello, DeepReply, DeepRequest, DeepSetup

STAGE = "deep"
MODULE = "llmctl.worker.deepcheck"
MATMUL_S = 2.0
IMPORT_S = 180.0
"""For `import torch` from a slow or busy disk."""

ANSWER_S = 120.0
"""Beside the time that a request asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What each host does with one place: `use` is a kind of `DeepRequest`; `seconds` at most."""

    uri: str
    use: str
    bytes: int
    seconds: float


def deep_check(
    hosts: Sequence[Host],
    facts: Mapping[str, HostFacts],
    connections: Connections,
    archive: AgentArchive,
    *,
    env: Mapping[str, str],
    trials: Mapping[str, Sequence[Trial]],
    doing: Callable[[str], None] = lambda _what: None,
) -> DeepResults:
    """Matrix products on every device, all-reduces in pairs, then the `trials` of each host.

    Args:
        facts: of every host; one without torch does its trials only.
        env: what ranks would have, secrets included: it travels on stdin.
        doing: told what comes next.
    """
    crew = _Crew(hosts, facts, connections, archive)
    try:
        doing("starting on every host")
        crew.gather(env)
        able = [host.name for host in hosts if has_torch(facts[host.name])]
        doing("matrix products")
        products = crew.ask({name: DeepRequest(kind=MATMUL, seconds=MATMUL_S) for name in able})
        doing("all-reduces in pairs")
        pairs = crew.pairs([name for name in able if name in products and not products[name].error])
        stores = _run_trials(crew, trials, doing)
        return DeepResults(hosts={h.name: crew.found(h.name, products, stores) for h in hosts}, pairs=pairs)
    finally:
        crew.leave()


def has_torch(facts: HostFacts) -> bool:
    return facts.python is not None and facts.python.torch is not None


def _run_trials(
    crew: _Crew, trials: Mapping[str, Sequence[Trial]], doing: Callable[[str], None]
) -> dict[str, list[StoreResult]]:
    """The hosts do their n-th trial at the same time: a store is shared in training, too."""
    found: dict[str, list[StoreResult]] = {name: [] for name in trials}
    for number in range(max((len(mine) for mine in trials.values()), default=0)):
        now = {name: mine[number] for name, mine in trials.items() if number < len(mine)}
        doing(", ".join(dict.fromkeys(f"{trial.use} {trial.uri}" for trial in now.values())))
        requests = {
            name: DeepRequest(kind=trial.use, uri=trial.uri, bytes=trial.bytes, seconds=trial.seconds)
            for name, trial in now.items()
        }
        for name, reply in crew.ask(requests).items():
            trial = now[name]
            found[name].append(StoreResult(uri=trial.uri, use=trial.use, reply=reply, wanted=trial.bytes))
    return found


class _Crew:
    """The hosts' programs, while they run."""

    def __init__(
        self,
        hosts: Sequence[Host],
        facts: Mapping[str, HostFacts],
        connections: Connections,
        archive: AgentArchive,
    ) -> None:
        self._hosts = {host.name: _with_python(host, facts[host.name]) for host in hosts}
        self._facts = facts
        self._clients = connections
        self._archive = archive
        self._talks: dict[str, Talk] = {}
        self._errors: dict[str, str] = {}

    def gather(self, env: Mapping[str, str]) -> None:
        """Start all; who can't import torch drops out."""

        def one(host: Host) -> None:
            client = self._client(host.name)
            talk, _ = client.converse([], DeepHello, stage=STAGE, module=MODULE, deadline_s=IMPORT_S)
            self._talks[host.name] = talk

        for name, result in self._clients.each(self._hosts.values(), one).items():
            if isinstance(result, LlmctlError):
                self._errors[name] = result.message
        for name in list(self._talks):
            mine = {**self._shared(name), **env}
            self._tell(name, DeepSetup(env=mine, torch=has_torch(self._facts[name])))
        for name in list(self._talks):
            reply = self._hear(name, IMPORT_S)
            if reply.error:
                self._drop(name, reply.error)

    def _shared(self, name: str) -> dict[str, str]:
        """Several `local` hosts have one machine's cores: all of them at once would be far slower."""
        local = sum(host.is_local for host in self._hosts.values())
        if not self._hosts[name].is_local or local < 2:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, self._facts[name].cores // local))}

    def leave(self) -> None:
        for talk in self._talks.values():
            talk.close()
        self._talks.clear()

    def ask(self, requests: Mapping[str, DeepRequest]) -> dict[str, DeepReply]:
        """Every host's answer; one that dropped out has none."""
        asked = [name for name, request in requests.items() if self._tell(name, request)]
        return {name: self._hear(name, ANSWER_S + 3 * requests[name].seconds) for name in asked}

    def pairs(self, names: Sequence[str]) -> tuple[PairResult, ...]:
        """All-reduces: first everybody, then those who failed with partners that are known to be sound."""
        found: list[PairResult] = []
        for pairs in first_pairs(names):
            found += self._both_ways(pairs)
        for pairs in second_pairs(found):
            found += self._both_ways(pairs)
        return tuple(found)

    def _both_ways(self, pairs: Sequence[tuple[str, str]]) -> list[PairResult]:
        """With each of the two as rank 0: which of them connects to the other goes by rank."""
        there = {(one.a, one.b): one for one in self._reduce(pairs)}
        well = [pair for pair in pairs if there[pair].rate is not None]
        for one in self._reduce([(b, a) for a, b in well]):
            first = there[one.b, one.a]
            if one.rate is None or first.rate is None:
                there[one.b, one.a] = replace(first, rate=None, error=one.error)
            else:
                there[one.b, one.a] = replace(first, rate=min(first.rate, one.rate))
        return [there[pair] for pair in pairs]

    def _reduce(self, pairs: Sequence[tuple[str, str]]) -> list[PairResult]:
        ports = self.ask({a: DeepRequest(kind=SERVE) for a, _ in pairs})
        requests: dict[str, DeepRequest] = {}
        for a, b in pairs:
            if a in ports and not ports[a].error and b in self._talks:
                requests[a] = self._request(0, a, (a, b), ports[a].port)
                requests[b] = self._request(1, b, (a, b), ports[a].port)
        replies = self.ask(requests)
        return [_paired(a, b, ports.get(a), replies) for a, b in pairs]

    def _request(self, rank: int, name: str, pair: tuple[str, str], port: int) -> DeepRequest:
        host, facts = self._hosts[name], self._facts[name]
        master = self._address(*pair)
        gpus = all(self._facts[one].gpus for one in pair)
        return DeepRequest(
            kind=REDUCE,
            rank=rank,
            addr=master,
            port=port,
            interface=interface(host, facts, master) or "",
            backend="nccl" if gpus else "gloo",
        )

    def _address(self, a: str, b: str) -> str:
        """Of `a`, as `b` should reach it."""
        host, facts = self._hosts[a], self._facts[a]
        if host.internal_addr:
            return host.internal_addr
        if host.is_local and self._hosts[b].is_local:
            return "127.0.0.1"
        own = [one.ip for one in facts.python.addresses] if facts.python else []
        named = own_address(facts, host.interface) if host.interface else None
        far = [ip for ip in own if not ip.startswith("127.")]
        reached = facts.reached_by if facts.reached_by in own else None
        return named or reached or (far[0] if far else host.addr)

    def found(
        self, name: str, products: Mapping[str, DeepReply], stores: Mapping[str, list[StoreResult]]
    ) -> Deep:
        product = products.get(name, DeepReply())
        deep = Deep(devices=product.devices, stores=tuple(stores.get(name, ())), error=product.error)
        return replace(deep, error=self._errors.get(name, deep.error))

    def _tell(self, name: str, value: object) -> bool:
        if name not in self._talks:
            return False
        try:
            self._talks[name].say(value)
        except LlmctlError as error:
            self._drop(name, error.message)
            return False
        return True

    def _hear(self, name: str, deadline_s: float) -> DeepReply:
        if name not in self._talks:
            return DeepReply(error=self._errors[name])
        try:
            return self._talks[name].hear(DeepReply, deadline_s=deadline_s)
        except EndedError as error:
            told = self._client(name).ended(error, STAGE).message
        except LlmctlError as error:
            told = error.message
        self._drop(name, told)
        return DeepReply(error=told)

    def _drop(self, name: str, why: str) -> None:
        self._errors[name] = why
        self._talks.pop(name).close()

    def _client(self, name: str) -> AgentClient:
        return AgentClient(self._clients.get(name), self._hosts[name], self._archive)


def _with_python(host: Host, facts: HostFacts) -> Host:
    """With the interpreter that was looked at: that of the job's environment, where it has one."""
    return replace(host, python=facts.python.executable) if facts.python else host


def _paired(a: str, b: str, served: DeepReply | None, replies: Mapping[str, DeepReply]) -> PairResult:
    """Both sides must have ended well."""
    if served is None or served.error:
        return PairResult(a=a, b=b, error=served.error if served else f"{a} does not answer")
    errors = [f"{name}: {replies[name].error}" for name in (a, b) if name in replies and replies[name].error]
    rates = [replies[name].rate for name in (a, b) if name in replies]
    known = [rate for rate in rates if rate is not None]
    if errors or len(known) < 2:
        return PairResult(a=a, b=b, error=errors[0] if errors else f"{b} does not answer")
    return PairResult(a=a, b=b, rate=min(known))
