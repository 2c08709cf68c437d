"""One-line summaries of what was found, pushed and planned. Pure."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from llmctl.controller.config.types import Host
from llmctl.controller.execute.prepare import Prepared
from llmctl.controller.plan.plan import Plan
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.transport.tree import Tree
from llmctl.controller.ui.format import names, rate, size
from llmctl.wire.consumed import fingerprint
from llmctl.wire.manifests import ShardManifest
from llmctl.wire.specs import DataSource


def hosts_line(hosts: Sequence[Host], facts: Mapping[str, HostFacts]) -> str:
    """`a, b ready · torch 2.13.0 · cuda 13.0 · 8 x H100`."""
    found = [facts[host.name] for host in hosts]
    pythons = [fact.python for fact in found if fact.python]
    parts = [names([host.name for host in hosts]) + " ready"]
    parts += [f"torch {version}" for version in _distinct(python.torch for python in pythons)]
    parts += [f"cuda {version}" for version in _distinct(python.cuda for python in pythons)]
    gpus = Counter(gpu.model for fact in found for gpu in fact.gpus)
    parts += [f"{count} x {model}" for model, count in gpus.items()]
    if not gpus:
        shared = [facts[host.name].cores for host in hosts if host.is_local][:1]
        cores = sum(shared) + sum(facts[host.name].cores for host in hosts if not host.is_local)
        parts.append(f"{cores} CPU cores")
    return " · ".join(parts)


def corpus_line(uri: str, manifest: ShardManifest) -> str:
    """`hdfs://nn/corpus · 1.2B tokens in 96 shards · corpus 51be07`."""
    shards = len(manifest.shards)
    told = f"{rate(manifest.tokens)} tokens in {shards} shard{'s' * (shards != 1)}"
    return f"{uri} · {told} · corpus {fingerprint(manifest)[:6]}"


def code_line(prepared: Prepared) -> str:
    """`3 of 214 files sent (18 kB) · tree 9c1f2a`, of the host that needed most; a dry run sends nothing."""
    tree = prepared.tree
    pushed = [ready.pushed for ready in prepared.ready.values() if ready.pushed is not None]
    if tree is None:
        return ""
    left = f" · {_left_out(tree)} left out" if tree.ignored or tree.special else ""
    if not pushed:
        plural = "" if tree.files == 1 else "s"
        return f"{tree.files} file{plural}, {size(tree.bytes)} · tree {tree.hash[:6]} · not sent{left}"
    most = max(pushed, key=lambda result: result.sent_bytes)
    if all(result.already for result in pushed):
        sent = f"{most.total_files} files, already there"
    else:
        sent = f"{most.sent_files} of {most.total_files} files sent ({size(most.sent_bytes)})"
    return f"{sent} · tree {tree.hash[:6]}{left}"


def _left_out(tree: Tree) -> str:
    """`data/, .env and 40 more`: what the ignore rules took out, the top of the tree by name."""
    named = list(tree.ignored_top[:3])
    more = tree.ignored + tree.special - len(named)
    if not named:
        return str(more)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def tree_warnings(tree: Tree) -> list[str]:
    """Big files are a mistake more often than not."""
    return [
        f"{path} has {size(length)} and is pushed as code; `.llmctlignore` leaves it out"
        for path, length in tree.large
    ]


def plan_lines(plan: Plan) -> list[str]:
    """The plan as text: what would run where, in the words of the launch itself."""
    master = f"{plan.master_addr}:{plan.master_port}"
    lines = [f"{plan.run_id}  {plan.summary} · {plan.world_size} ranks · master {master}"]
    lines += [f"network  {plan.network_why}"] if plan.network_why else []
    lines += data_lines(plan.nodes[0].corpora)
    for node in plan.nodes:
        launch = node.launch
        last = launch.first_rank + launch.nproc - 1
        ranks = f"rank {launch.first_rank}" if launch.nproc == 1 else f"ranks {launch.first_rank}-{last}"
        over = f" over {launch.interface}" if launch.interface else ""
        lines.append(f"{node.host}  node {launch.node_rank} · {ranks}{over} · {node.workdir}")
        lines.append(f"    {launch.launcher}: {shlex.join([launch.python, *launch.command])}")
        if node.env:
            lines.append("    env: " + " ".join(f"{k}={shlex.quote(v)}" for k, v in sorted(node.env.items())))
        if node.secret_names:
            lines.append("    secrets: " + " ".join(f"{name}=***" for name in node.secret_names))
    return lines


def data_lines(corpora: Sequence[DataSource]) -> list[str]:
    """The corpora and what share of the samples each gives."""
    total = sum(source.weight for source in corpora)
    if len(corpora) == 1:
        return [f"data  {corpora[0].uri}"]
    return [f"data  {source.weight / total:6.2%} of the samples  {source.uri}" for source in corpora]


def _distinct(values: Iterable[str | None]) -> list[str]:
    return sorted({value for value in values if value})
