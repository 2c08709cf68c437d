"""`llmctl hosts bootstrap`: from a bare host to one that can run the job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.options import (
    HostsOption,
    JobOption,
    LimitOption,
    OutputOption,
    PoolOption,
    checked_output,
)

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.requirements import Requirements
    from llmctl.controller.config.types import Host
    from llmctl.controller.execute.bootstrap import Bootstrap, Made, Task
    from llmctl.errors import LlmctlError

EPILOG = (
    "Examples:\n\n"
    "    llmctl hosts bootstrap -f job.yaml --dry-run\n\n"
    "    llmctl hosts bootstrap -f job.yaml\n\n"
    "    llmctl hosts bootstrap -f job.yaml --wheelhouse     (hosts without internet)\n\n"
    "    llmctl hosts bootstrap -r requirements.txt --fan-out --limit 'gpu-*'"
)


def register(app: typer.Typer) -> None:
    app.command("bootstrap", epilog=EPILOG)(bootstrap)


def bootstrap(
    file: JobOption = None,
    requirements: Annotated[
        str | None,
        typer.Option("--requirements", "-r", metavar="FILE", help="Instead of the job's env.requirements."),
    ] = None,
    wheelhouse: Annotated[
        bool, typer.Option("--wheelhouse", help="Packages are downloaded here and sent: no internet there.")
    ] = False,
    fan_out: Annotated[
        bool,
        typer.Option("--fan-out", help="As --wheelhouse, sent once and copied from host to host."),
    ] = False,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Lock anew: what indexes have now, not what was locked before.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the steps, change nothing.")] = False,
    pool: PoolOption = None,
    limit: LimitOption = None,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Make each host ready for the job: a Python, and an environment with what `env.requirements` names.

    The environment lies below the workdir, named by its content; no sudo, nothing of the host's own changes.
    A second run finds it and does nothing. Exit 20 where a host could not be made ready.
    """
    from llmctl.controller.cli.session import Session
    from llmctl.controller.execute.bootstrap import Bootstrap
    from llmctl.controller.execute.locking import Locker

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        wanted, named = _wanted(file, requirements)
        chosen = _hosts(session, pool or named, limit)
        work = Bootstrap(
            wanted,
            session.connect(chosen),
            session.archive,
            Locker(session.cache, upgrade=upgrade),
            wheelhouse=wheelhouse,
            fan_out=fan_out,
            upgrade=upgrade,
        )
        _do(session, work, chosen, dry_run=dry_run)
    finally:
        session.close()


def _wanted(file: str | None, requirements: str | None) -> tuple[Requirements, str | None]:
    """What is asked for, and the job's pool. Raises ConfigError where nothing is."""
    from pathlib import Path

    from llmctl.controller.config.job import load_job
    from llmctl.controller.config.models import EnvSection
    from llmctl.controller.config.requirements import requirements_of
    from llmctl.errors import ConfigError

    path = Path(file or "job.yaml")
    job = load_job(path) if file or path.exists() or not requirements else None
    env, base = (job.env, path.absolute().parent) if job else (EnvSection(), Path.cwd())
    if requirements:
        env = env.model_copy(update={"requirements": requirements})
        base = Path.cwd()
    wanted = requirements_of(env, base)
    if wanted is None:
        raise ConfigError(
            f"{path}: the job names no packages", hint="env: {requirements: [torch, …]} in it, or -r FILE"
        )
    return wanted, job.pool if job else None


def _hosts(session: Session, pool: str | None, limit: list[str] | None) -> tuple[Host, ...]:
    from llmctl.controller.cli.hosts.choose import chosen_hosts

    return chosen_hosts(session, pool, limit)


def _do(session: Session, work: Bootstrap, chosen: tuple[Host, ...], *, dry_run: bool) -> None:
    """Plan, show or carry out, then the errors. Raises HostErrors."""
    from llmctl.controller.execute.bootstrap import Task
    from llmctl.controller.execute.identity import Recogniser
    from llmctl.controller.ui.stages import Stages
    from llmctl.errors import HostErrors, LlmctlError

    stages = Stages(session.screen)
    recogniser = Recogniser(session.book)
    with stages.stage("plan", "looking at the hosts, locking packages") as stage:
        planned = work.plan(chosen, recogniser)
        stage.text = _planned_line(planned)
    tasks = {name: task for name, task in planned.items() if isinstance(task, Task)}
    results: dict[str, Made | LlmctlError] = {n: e for n, e in planned.items() if isinstance(e, LlmctlError)}
    if dry_run:
        _show_plan(session, tasks)
    else:
        if any(task.steps for task in tasks.values()):
            with stages.stage("make", "making environments") as stage:
                results.update(work.carry_out(tasks, stage.tell))
        else:
            results.update(work.carry_out(tasks, lambda _host, _text: None))
        _show(session, {host.name: results[host.name] for host in chosen})
    errors = [results[host.name] for host in chosen if host.name in results]
    failed = [error for error in errors if isinstance(error, LlmctlError)]
    if failed:
        raise HostErrors(failed)


def _planned_line(planned: dict[str, Task | LlmctlError]) -> str:
    from llmctl.controller.execute.bootstrap import Task

    tasks = [task for task in planned.values() if isinstance(task, Task)]
    todo = sum(1 for task in tasks if task.steps)
    refused = len(planned) - len(tasks)
    parts = [f"{len(tasks) - todo} ready" if len(tasks) > todo else "", f"{todo} to make" if todo else ""]
    parts.append(f"{refused} can't be made ready" if refused else "")
    return ", ".join(part for part in parts if part)


def _show_plan(session: Session, tasks: dict[str, Task]) -> None:
    from llmctl.controller.ui.bootstrap import plan_lines

    if session.json:
        shown = {
            name: {
                "env": task.env,
                "steps": list(task.steps),
                "packages": [f"{one.name}=={one.version}" for one in task.packages],
            }
            for name, task in tasks.items()
        }
        session.screen.document("hosts-bootstrap-plan", {"hosts": shown})
        return
    for name, task in tasks.items():
        for line in plan_lines(name, task.steps):
            session.screen.result(line)


def _show(session: Session, results: dict[str, Made | LlmctlError]) -> None:
    from llmctl.controller.ui.bootstrap import made_line
    from llmctl.errors import LlmctlError
    from llmctl.wire import codec

    if session.json:
        shown = {
            name: {"error": one.message} if isinstance(one, LlmctlError) else codec.encode(one)
            for name, one in results.items()
        }
        session.screen.document("hosts-bootstrap", {"hosts": shown})
        return
    for name, one in results.items():
        if not isinstance(one, LlmctlError):
            session.screen.result(made_line(name, one))
