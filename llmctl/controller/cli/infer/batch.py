"""`llmctl infer batch`: every line of a file through the model, answers in input order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.controller.cli.infer.options import (
    DetachOption,
    DryRunOption,
    EnvOption,
    NameOption,
    SetOption,
    ShapeOption,
)
from llmctl.controller.cli.options import (
    HostsOption,
    JobOption,
    LimitOption,
    PoolOption,
    checked_output,
)
from llmctl.wire.exitcodes import ExitCode

if TYPE_CHECKING:
    from llmctl.controller.cli.infer.launching import Launched
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.types import RunConfig
    from llmctl.wire.serving import BatchSpec

EPILOG = (
    "Examples:\n\n"
    "    llmctl infer batch -f job.yaml --input prompts.jsonl --output answers\n\n"
    "    llmctl infer batch --input hdfs://nn/prompts.jsonl --output s3://bucket/out --max-tokens 64\n\n"
    "    llmctl infer batch --task score --input corpus.jsonl --output scores\n\n"
    "The same command again goes on where a killed one was. Ctrl-C detaches: the batch goes on."
)


def register(app: typer.Typer) -> None:
    app.command("batch", epilog=EPILOG)(batch)


def batch(
    source: Annotated[
        str, typer.Option("--input", metavar="URI", help="JSONL: `prompt`, `messages` or `tokens` per line.")
    ],
    dest: Annotated[str, typer.Option("--out", "--output", metavar="URI", help="Folder for the answers.")],
    file: JobOption = None,
    hosts: HostsOption = None,
    task: Annotated[
        str, typer.Option("--task", help="generate, score (log-likelihoods) or embed (mean-pooled states).")
    ] = "generate",
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="New tokens per line, where it says nothing.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, help="0 (default): always the likeliest token.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the sampling.")] = None,
    logprobs: Annotated[
        int | None, typer.Option("--logprobs", min=0, help="Log-probabilities, with so many alternatives.")
    ] = None,
    shape: ShapeOption = None,
    name: NameOption = None,
    pool: PoolOption = None,
    limit: LimitOption = None,
    set_: SetOption = None,
    env: EnvOption = None,
    detach: DetachOption = False,
    dry_run: DryRunOption = False,
    output: Annotated[
        str | None, typer.Option("-o", metavar="FORMAT", help="text, or json: one document on stdout.")
    ] = None,
) -> None:
    """Run every line of a JSONL file through the model, split over the replicas by work.

    Input and output are paths on the run's first host, or URLs that it can reach. Each answer is one JSON
    line, in input order; a line that is no request becomes an error record. `manifest.json` is written last.
    """
    from llmctl.controller.cli.infer.launching import configured, launch, overrides_of
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.job import absolute_uri
    from llmctl.controller.plan.inference import Work

    session = Session(hosts=hosts, output=checked_output(output))
    here = Path.cwd()
    uris = absolute_uri(source, "--input", here), absolute_uri(dest, "--output", here)
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "logprobs": logprobs}
    try:
        overrides = overrides_of(shape, name, pool, limit, set_, env)
        config = configured(session, file, overrides, uris=uris)
        spec = _batch_spec(config, *uris, task, given)
        launched = launch(session, config, Work(batch=spec), dry_run=dry_run)
        code = 0 if launched is None else _follow(session, launched, spec, detach=detach)
    finally:
        session.close()
    raise typer.Exit(code)


def _batch_spec(config: RunConfig, source: str, dest: str, task: str, given: dict[str, Any]) -> BatchSpec:
    from llmctl.errors import ConfigError
    from llmctl.wire.infer import TASKS, SamplingSpec
    from llmctl.wire.serving import BatchSpec

    if task not in TASKS:
        raise ConfigError(f"--task must be one of {', '.join(TASKS)}, found {task!r}")
    sampling = {key: value for key, value in given.items() if value is not None}
    SamplingSpec(**sampling).check()
    lines = config.job.infer.part_lines if config.job.infer else BatchSpec.part_lines
    return BatchSpec(input=source, output=dest, task=task, part_lines=lines, sampling=sampling)


def _follow(session: Session, launched: Launched, spec: BatchSpec, *, detach: bool) -> int:
    from llmctl.controller.cli.following import detach_hint, follow_to_end
    from llmctl.controller.cli.verdict import detached, show_verdict
    from llmctl.controller.collect.locate import Located
    from llmctl.controller.ui.training import TrainingView
    from llmctl.wire.records import FollowRequest

    run_id, hosts = launched.plan.run_id, launched.config.hosts
    if detach:
        if session.json:
            session.screen.document("infer-batch", {"run_id": run_id, "state": "starting"})
        else:
            session.screen.result(run_id)
            session.screen.say(f"detached; {run_id} goes on.   {detach_hint(run_id)}")
        return 0
    names = [host.name for host in hosts]
    display = TrainingView(session.screen, total=None, logs=False, hosts=names, unit="line")
    try:
        view = follow_to_end(
            session,
            launched.connections,
            Located(run_id=run_id, hosts=hosts),
            display,
            FollowRequest(),
            one_fate=False,
        )
    except KeyboardInterrupt:
        return detached(session, run_id)
    code = show_verdict(session, view, kind="infer-batch")
    if code == ExitCode.OK:
        session.screen.say(f"answers   {spec.output}")
    return code
