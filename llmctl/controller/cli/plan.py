"""`llmctl plan`: every layout of a job, what each needs, how fast it should be, and the one to take."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.controller.cli.options import (
    HostsOption,
    JobOption,
    LimitOption,
    OutputOption,
    PoolOption,
    checked_output,
)
from llmctl.errors import ConfigError

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.models import JobFile
    from llmctl.controller.config.overrides import JobOverrides
    from llmctl.controller.config.types import RunConfig
    from llmctl.controller.plan.choose import Choice
    from llmctl.controller.plan.layouts import Question, Row
    from llmctl.controller.plan.machines import Fleet, Given

EPILOG = (
    "Examples:\n\n"
    "    llmctl plan -f job.yaml\n\n"
    "    llmctl plan --fake-hosts 64x8xH100-80GB --bandwidth 400Gbit --set recipe.model.size=7b\n\n"
    "    llmctl plan -f job.yaml --fake-hosts 4x1xcpu-8c-32GB -o json\n\n"
    "`parallel: auto` in a job takes the marked row."
)


def register(app: typer.Typer) -> None:
    app.command("plan", epilog=EPILOG)(plan)


def plan(
    file: JobOption = None,
    hosts: HostsOption = None,
    fake_hosts: Annotated[
        str | None,
        typer.Option(
            "--fake-hosts", metavar="NxMxDEVICE", help="Plan for hosts that aren't there: 64x8xH100-80GB."
        ),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option("--bandwidth", metavar="RATE", help="Of one host's network: 100Gbit, 12.5GB."),
    ] = None,
    inside: Annotated[
        str | None, typer.Option("--bandwidth-inside", metavar="RATE", help="Between two ranks of one host.")
    ] = None,
    latency: Annotated[
        float | None, typer.Option("--latency", metavar="US", help="Between hosts, microseconds.", min=0.0)
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option("--flops", metavar="TFLOPS", help="Measured, per rank; else assumed.", min=0.0),
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option("--vocabulary", metavar="TOKENS", help="Else the corpus's own.", min=1)
    ] = None,
    shape: Annotated[
        str | None, typer.Option("-j", metavar="NxM", help="N hosts, M ranks on each: 2x4.")
    ] = None,
    pool: PoolOption = None,
    limit: LimitOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the job: recipe.model.size=7b."),
    ] = None,
    top: Annotated[int, typer.Option("--top", metavar="N", help="Layouts to show.", min=1)] = 12,
    output: OutputOption = None,
) -> None:
    """Show memory and time of every layout, those that do not fit or can't work included, and pick one.

    Nothing is started. Hosts are asked for their cores, memory and GPUs; with --fake-hosts nobody is asked.
    What was not measured is assumed, and every assumption is printed.
    """
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.overrides import JobOverrides, parse_shape
    from llmctl.controller.plan.machines import Given

    session = Session(hosts=hosts, output=checked_output(output))
    nodes, nproc = parse_shape(shape) if shape else (None, None)
    overrides = JobOverrides(
        nodes=nodes, nproc=nproc, pool=pool, set=tuple(set_ or ()), limit=tuple(limit or ())
    )
    given = Given(
        between=parse_rate(bandwidth, "--bandwidth"),
        inside=parse_rate(inside, "--bandwidth-inside"),
        latency=latency / 1e6 if latency is not None else None,
        flops=flops * 1e12 if flops else None,
    )
    try:
        question = _question(session, file, overrides, fake_hosts, given, vocabulary)
        _show(session, question, top)
    finally:
        session.close()


def parse_rate(text: str | None, flag: str) -> float | None:
    """`100Gbit`, `12.5GB`, `800Mbit/s` as bytes per second. Raises ConfigError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT])(bit|B)(?:/?p?s)?", text)
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"{flag} must be a rate such as 100Gbit or 12.5GB (per second), found {text!r}")
    unit = {"M": 1e6, "G": 1e9, "T": 1e12}[found[2]]
    return float(found[1]) * unit / (8 if found[3] == "bit" else 1)


def _question(
    session: Session,
    file: str | None,
    overrides: JobOverrides,
    fake_hosts: str | None,
    given: Given,
    vocabulary: int | None,
) -> Question:
    from llmctl.controller.config.job import load_job
    from llmctl.controller.config.overrides import apply_overrides
    from llmctl.controller.plan.machines import fake_fleet

    path = Path(file or "job.yaml")
    job = load_job(path)
    base = path.absolute().parent
    if fake_hosts is not None:
        job = apply_overrides(job, overrides, os.environ)
        fleet = fake_fleet(fake_hosts, given)
        return _ask(session, job, fleet, base, vocabulary, has_store=True)
    config = session.resolve(job, base, overrides)
    return _ask(session, config.job, _real_fleet(session, config, given), base, vocabulary)


def _ask(
    session: Session,
    job: JobFile,
    fleet: Fleet,
    base: Path,
    vocabulary: int | None,
    *,
    has_store: bool = False,
) -> Question:
    """`has_store`: hosts that aren't there have a store for checkpoints, whether the job names it or not."""
    from llmctl.controller.config.corpus import corpus_vocabulary
    from llmctl.controller.plan.auto import USUAL_VOCABULARY, shape
    from llmctl.controller.plan.layouts import Question
    from llmctl.controller.plan.plan import recipe_spec

    if job.train.script is not None:
        raise ConfigError(
            "`train.script` is a script of yours; only the built-in recipe can be planned",
            hint="leave `train.script` out: --set train.script=null",
        )
    recipe = recipe_spec(job)
    if recipe.model.source is not None:
        raise ConfigError(
            "`recipe.model.from` brings its own shape, which lies with its weights",
            hint="plan with the nearest size: --set recipe.model.from=null --set recipe.model.size=125m",
        )
    tokens = vocabulary or corpus_vocabulary(job, base)
    if tokens is None:
        session.screen.warn(f"a vocabulary of {USUAL_VOCABULARY} is assumed; --vocabulary says another")
    named = job.checkpoint.uri is not None
    if has_store and not named and len(fleet.machines) > 1:
        screen = session.screen
        screen.warn(
            "a store for checkpoints that all hosts see is assumed; the job must name it: checkpoint.uri"
        )
    return Question(
        model=shape(recipe, tokens or USUAL_VOCABULARY),
        recipe=recipe,
        fleet=fleet,
        shared_checkpoints=named or has_store,
    )


def _real_fleet(session: Session, config: RunConfig, given: Given) -> Fleet:
    """What the hosts say. Raises HostErrors where any of them can't be asked."""
    from llmctl.controller.cli.hosts.clean import parse_age
    from llmctl.controller.cli.mapped import USUAL_AGE, by_map, with_links
    from llmctl.controller.execute.facts import facts_of
    from llmctl.controller.plan.machines import probed_fleet
    from llmctl.controller.plan.plan import local_hosts, ranks_of
    from llmctl.controller.probe.facts import HostFacts
    from llmctl.errors import HostErrors, LlmctlError

    connections = session.connect(config.hosts)
    results = connections.each(config.hosts, lambda host: facts_of(host, connections))
    errors = [value for value in results.values() if isinstance(value, LlmctlError)]
    if errors:
        raise HostErrors(errors)
    facts = {name: value for name, value in results.items() if isinstance(value, HostFacts)}
    found = by_map(session, config.hosts, facts, parse_age(USUAL_AGE))
    if found.warning:
        session.screen.warn(found.warning)
    ranks = {host.name: ranks_of(host, facts[host.name]) for host in found.hosts}
    return probed_fleet(ranks, facts, with_links(given, found), local_hosts(found.hosts))


def _show(session: Session, question: Question, top: int) -> None:
    from llmctl.controller.plan.choose import choose, way_out
    from llmctl.controller.plan.layouts import judge_all
    from llmctl.controller.plan.parallel import text_of
    from llmctl.controller.ui.plans import layouts_table, shown_rows

    rows = judge_all(question)
    choice = choose(rows)
    if session.json:
        session.screen.document("layouts", _document(question, rows, choice))
        return
    screen = session.screen
    screen.headline("plan", _headline(question))
    for note in question.fleet.notes:
        screen.say(f"  {note}", style="dim")
    shown = shown_rows(rows, top)
    screen.out.print(layouts_table(shown, choice, screen.out.width))
    if len(shown) < len(rows):
        screen.say(f"{len(rows) - len(shown)} more layouts: --top {len(rows)}, or -o json")
    if choice.row is None:
        screen.result(f"none: {choice.why}")
        screen.say(f"  {way_out(question)}")
        return
    screen.result(f"take {choice.row.spec.name}: {choice.why}")
    screen.say("  " + " · ".join((text_of(choice.row.spec), *_settings(choice.row))) + "   or parallel: auto")


def _settings(row: Row) -> list[str]:
    """What of the recipe must change for the row to fit."""
    if row.as_asked:
        return []
    return [
        f"recipe.micro_batch: {row.micro_batch}",
        f"recipe.activation_checkpointing: {row.checkpointing}",
    ]


def _headline(question: Question) -> str:
    from llmctl.controller.ui.format import rate
    from llmctl.wire.model import count_parameters

    recipe, model = question.recipe, question.model
    parameters = rate(count_parameters(model)) if model is not None else "unknown"
    return (
        f"{recipe.model.size}: {parameters} parameters · {question.fleet.name} · "
        f"batch {recipe.global_batch} x {recipe.sequence_length} tokens · {recipe.precision}"
    )


def _document(question: Question, rows: tuple[Row, ...], choice: Choice) -> dict[str, Any]:
    from llmctl.controller.ui.plans import row_document

    return {
        "world": question.fleet.world,
        "fleet": question.fleet.name,
        "assumptions": list(question.fleet.notes),
        "choice": row_document(choice.row) if choice.row is not None else None,
        "why": choice.why,
        "layouts": [row_document(row) for row in rows],
    }
