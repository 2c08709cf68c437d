"""The `--deep` of `llmctl hosts check`: what each host is asked to do, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llmctl.wire.deep import READ, TRIAL, WRITE

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.types import Host, RunConfig
    from llmctl.controller.execute.check import Results
    from llmctl.controller.execute.deep import Trial
    from llmctl.controller.plan.deep import PairResult
    from llmctl.controller.probe.facts import HostFacts

READ_BYTES, READ_S = 1 << 30, 3.0
WRITE_BYTES, WRITE_S = 64_000_000, 10.0
TRIAL_S = 30.0
"""A checkpoint that takes longer is not written to its end; the rest is reckoned."""


def run_deep(
    session: Session, chosen: tuple[Host, ...], results: Results, config: RunConfig | None
) -> tuple[Results, tuple[PairResult, ...]]:
    """The results with what was measured on the hosts that answered, and the pairs that were tried."""
    from llmctl.controller.execute.check import Checked, with_deep
    from llmctl.controller.execute.deep import deep_check
    from llmctl.controller.ui.stages import Stages

    facts = {name: one.facts for name, one in results.items() if isinstance(one, Checked)}
    hosts = [host for host in chosen if host.name in facts and facts[host.name].python is not None]
    if not hosts:
        return results, ()
    env = {} if config is None else {**config.env, **config.secrets}
    if config is not None:
        session.screen.hide(config.secrets.to_hide())
    trials = {} if config is None else {host.name: trials_of(config, facts[host.name]) for host in hosts}
    with Stages(session.screen).stage("deep", "working on every host") as stage:
        found = deep_check(
            hosts,
            facts,
            session.connect(chosen),
            session.archive,
            env=env,
            trials=trials,
            doing=stage.doing,
        )
        stage.text = told(hosts, found.pairs, trials)
    return with_deep(results, found), found.pairs


def told(hosts: Sequence[Host], pairs: Sequence[PairResult], trials: Mapping[str, Sequence[Trial]]) -> str:
    """`4 hosts · 6 all-reduces · read, trial`."""
    parts = [f"{len(hosts)} host{'s' * (len(hosts) != 1)}"]
    parts += [f"{len(pairs)} all-reduce{'s' * (len(pairs) != 1)}"] if pairs else []
    uses = dict.fromkeys(trial.use for mine in trials.values() for trial in mine)
    return " · ".join([*parts, *([", ".join(uses)] if uses else [])])


def trials_of(config: RunConfig, facts: HostFacts) -> tuple[Trial, ...]:
    """What one host does with the job's stores.

    With a common store every host writes its share of a checkpoint, without one the whole.
    """
    from llmctl.controller.execute.deep import Trial
    from llmctl.controller.plan.preflight import checkpoint_bytes

    job = config.job
    corpora = job.data.corpora if job.data else ()
    found = [Trial(uri=entry.uri, use=READ, bytes=READ_BYTES, seconds=READ_S) for entry in corpora]
    size = checkpoint_bytes(job) if job.recipe.model.from_ is None else None
    store = job.checkpoint.uri
    if store is not None:
        found.append(Trial(uri=store, use=WRITE, bytes=WRITE_BYTES, seconds=WRITE_S))
    if size is not None:
        share = size if store is None else -(-size // len(config.hosts))
        found.append(Trial(uri=store or facts.workdir, use=TRIAL, bytes=share, seconds=TRIAL_S))
    return tuple(found)
