"""`llmctl ckpt ls | verify | prune`: checkpoints in any store; `ckpt_convert` has what needs torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli import ckpt_convert
from llmctl.controller.cli.options import HostsOption, OutputOption, checked_output

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.storage.checkpoints import Checkpoint
    from llmctl.storage.files import Store
    from llmctl.storage.findings import Finding
    from llmctl.storage.retention import Pruning, Retention

ckpt_app = typer.Typer(help="Look at checkpoints, check, remove, convert them.", no_args_is_help=True)

LS_EPILOG = (
    "Examples:\n\n    llmctl ckpt ls s3://bucket/demo\n\n    llmctl ckpt ls demo-7f3a\n\n"
    "    llmctl ckpt ls llmctl-runs/demo-7f3a"
)
VERIFY_EPILOG = (
    "Examples:\n\n    llmctl ckpt verify hdfs://nn:8020/demo\n\n    llmctl ckpt verify s3://bucket/demo --all"
)
PRUNE_EPILOG = (
    "Examples:\n\n    llmctl ckpt prune s3://bucket/demo --keep 2 --dry-run\n\n"
    "    llmctl ckpt prune s3://bucket/demo --keep 2 --keep-every 1000\n\n"
    "    llmctl ckpt prune s3://bucket/demo --damaged --dry-run"
)

UriArgument = Annotated[
    str, typer.Argument(metavar="URI", help="Store, pulled run, one checkpoint's folder, or a run's id.")
]


def register(app: typer.Typer) -> None:
    ckpt_convert.register(ckpt_app)
    app.add_typer(ckpt_app, name="ckpt")


@ckpt_app.callback()
def _root() -> None:
    """Look at checkpoints, check, remove, convert them."""


@ckpt_app.command("ls", epilog=LS_EPILOG)
def ls(target: UriArgument, hosts: HostsOption = None, output: OutputOption = None) -> None:
    """List checkpoints: step, state, age, size, files, ranks, model.

    committed: its marker is there, and every file in its size. unfinished: no marker yet, or its writer
    died. damaged: the marker can't be read, or files are missing. Contents: `llmctl ckpt verify`.
    """
    from llmctl.controller.cli.session import Session

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        uri = _uri_of(session, target)
        if uri is None:
            _ls_hosts(session, target)
        else:
            _ls_store(session, _open(uri))
    finally:
        session.close()


@ckpt_app.command("verify", epilog=VERIFY_EPILOG)
def verify(
    target: UriArgument,
    step: Annotated[int | None, typer.Option("--step", min=0, help="This one; else the newest.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every one that has a marker.")] = False,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Read every byte and compare it with the commit marker; names each damaged file and its damaged bytes.

    Exit code 21 where anything differs.
    """
    from llmctl.controller.cli.session import Session
    from llmctl.errors import ConfigError
    from llmctl.storage.checkpoints import survey

    if step is not None and everything:
        raise ConfigError("--step and --all exclude each other")
    session = Session(hosts=hosts, output=checked_output(output))
    try:
        store = _open(_needed_uri(session, target))
        chosen = _chosen(store, survey(store), step=step, everything=everything)
        results = [(one, _verified(session, store, one)) for one in chosen]
        _tell(session, store, results)
    finally:
        session.close()


@ckpt_app.command("prune", epilog=PRUNE_EPILOG)
def prune(
    target: UriArgument,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="So many of the newest good ones stay.")
    ] = None,
    keep_every: Annotated[
        int, typer.Option("--keep-every", metavar="STEPS", min=0, help="Multiples of this stay, too.")
    ] = 0,
    damaged: Annotated[
        bool, typer.Option("--damaged", help="Only those that are not what was saved; reads them all.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask before damaged ones go.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Read the newest that stays before any other goes; --damaged: all of them.",
        ),
    ] = True,
    older_than: Annotated[
        float,
        typer.Option("--older-than", metavar="SECONDS", min=0, help="When a dead writer's rest may go."),
    ] = 3600.0,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Remove old checkpoints, and what dead writers left; never the last good one.

    A damaged checkpoint counts for nothing, and is not removed while no newer one is good. With --damaged
    every such one goes, newer or not, and nothing else; at least one good one must stay.
    """
    from llmctl.controller.cli import ckpt_damaged
    from llmctl.controller.cli.session import Session
    from llmctl.errors import ConfigError
    from llmctl.storage.retention import Retention

    if (keep is None) != damaged or (damaged and keep_every):
        raise ConfigError("either --keep (and --keep-every) or --damaged: what is to go?")
    session = Session(hosts=hosts, output=checked_output(output))
    try:
        store = _open(_needed_uri(session, target))
        if keep is None:
            verify = (lambda one: _verified(session, store, one)) if check else None
            ckpt_damaged.prune(session, store, verify, dry_run=dry_run, yes=yes)
            return
        retention = Retention(keep=keep, keep_every=keep_every)
        pruning = _plan(session, store, retention, time.time() - older_than, check=check)
        _carry_out(session, store, pruning, older_than, dry_run=dry_run)
    finally:
        session.close()


def _uri_of(session: Session, target: str) -> str | None:
    """The store that `target` means; None: a run whose checkpoints lie on its hosts."""
    if "://" in target or "/" in target or target.startswith((".", "~")) or Path(target).exists():
        return target
    from llmctl.controller.collect.checkpoints import store_of

    located = session.locate(target)
    return store_of(session.connect(located.hosts), located.hosts, session.archive, located.run_id)


def _needed_uri(session: Session, target: str) -> str:
    from llmctl.errors import ConfigError

    uri = _uri_of(session, target)
    if uri is None:
        raise ConfigError(
            f"the checkpoints of {target} lie on its hosts",
            hint=f"llmctl pull {target} --checkpoints all, then name the folder that it was pulled to",
        )
    return uri


def _open(uri: str) -> Store:
    """The store; of a pulled run, the folder in it that has the checkpoints."""
    from llmctl.errors import NotFoundError
    from llmctl.storage.files import open_store

    store = open_store(uri)
    if store.local_root is None:
        return store
    if not store.local_root.is_dir():
        raise NotFoundError(f"{store.uri}: no such folder", hint="a run is named by its id, without a path")
    if (store.local_root / "checkpoints").is_dir() and not any(store.local_root.glob("step-*")):
        return open_store(str(store.local_root / "checkpoints"))
    return store


def _ls_store(session: Session, store: Store) -> None:
    from llmctl.controller.ui.checkpoints import checkpoint_document, checkpoints_table
    from llmctl.storage.checkpoints import survey

    found = survey(store)
    if session.json:
        documents = [checkpoint_document(one) for one in found]
        session.screen.document("checkpoints", {"uri": store.uri, "checkpoints": documents})
    elif found:
        session.screen.out.print(checkpoints_table(found))
    else:
        session.screen.say(f"no checkpoints in {store.uri}")


def _ls_hosts(session: Session, target: str) -> None:
    from llmctl.controller.collect.checkpoints import held_by_hosts
    from llmctl.controller.ui.checkpoints import checkpoint_document, checkpoints_table
    from llmctl.errors import HostErrors

    located = session.locate(target)
    connections = session.connect(located.hosts)
    held, errors = held_by_hosts(connections, located.hosts, session.archive, located.run_id)
    if session.json:
        documents = [checkpoint_document(one.checkpoint, hosts=list(one.hosts)) for one in held]
        session.screen.document("checkpoints", {"run_id": located.run_id, "checkpoints": documents})
    elif held:
        hosts = {one.checkpoint.step: one.hosts for one in held}
        session.screen.out.print(checkpoints_table([one.checkpoint for one in held], hosts))
    elif not errors:
        session.screen.say(f"{located.run_id} has no committed checkpoint on its hosts")
    if errors:
        raise HostErrors(errors)


def _chosen(store: Store, found: list[Checkpoint], *, step: int | None, everything: bool) -> list[Checkpoint]:
    """What to verify. Raises NotFoundError where there is no such checkpoint."""
    from llmctl.errors import NotFoundError
    from llmctl.storage.checkpoints import State

    marked = [one for one in found if one.state is not State.UNFINISHED]
    if everything and marked:
        return marked
    wanted = [one for one in marked if step in (None, one.step)]
    if not wanted:
        which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise NotFoundError(f"{store.uri}: {which} with a marker", hint=f"llmctl ckpt ls {store.uri}")
    return wanted[-1:]


def _verified(session: Session, store: Store, one: Checkpoint) -> list[Finding]:
    """All that is wrong with one checkpoint, with a byte count that moves."""
    from llmctl.controller.ui.format import size
    from llmctl.controller.ui.stages import Stages
    from llmctl.storage.checkpoints import findings
    from llmctl.storage.findings import Finding

    if one.manifest is None:
        return [Finding(path=one.folder, problem=f"{store.where(one.folder)}: {one.problem}")]
    with Stages(session.screen).stage("verify", f"checkpoint {one.step}") as stage:
        found = findings(store, one.folder, one.manifest, lambda count: stage.add_bytes("", count))
        if not found:
            stage.text = f"checkpoint {one.step}: {one.files} files ({size(one.bytes)}) are what was saved"
    return found


def _tell(session: Session, store: Store, results: list[tuple[Checkpoint, list[Finding]]]) -> None:
    """Every finding on stdout; raises IntegrityError where there is any."""
    from llmctl.controller.ui.checkpoints import findings_document
    from llmctl.errors import IntegrityError

    if session.json:
        documents = [findings_document(one, found) for one, found in results]
        session.screen.document("verify", {"uri": store.uri, "checkpoints": documents})
    bad = [(one, found) for one, found in results if found]
    if not session.json:
        for _, found in bad:
            for finding in found:
                session.screen.result(finding.problem)
    if bad:
        steps = ", ".join(str(one.step) for one, _ in bad)
        count = sum(len(found) for _, found in bad)
        raise IntegrityError(
            f"{store.uri}: checkpoint {steps}: {count} file{'s' * (count != 1)} not as saved",
            hint="remove it to resume from the one before it",
        )


def _plan(session: Session, store: Store, retention: Retention, before: float, *, check: bool) -> Pruning:
    from llmctl.storage.checkpoints import survey
    from llmctl.storage.retention import plan, verified_plan

    found = survey(store)
    if not check:
        return plan(found, retention, unfinished_before=before)
    return verified_plan(
        store,
        found,
        retention,
        unfinished_before=before,
        verify=lambda one: _verified(session, store, one),
    )


def _carry_out(session: Session, store: Store, pruning: Pruning, older_than: float, *, dry_run: bool) -> None:
    from llmctl.controller.ui.checkpoints import pruning_document, pruning_lines
    from llmctl.storage.checkpoints import remove

    if not session.json:
        for line in pruning_lines(pruning):
            session.screen.result(line)
    leftovers: tuple[str, ...] = ()
    if not dry_run:
        for one in pruning.go:
            remove(store, one.folder)
        leftovers = store.cleanup(older_than)
    if session.json:
        session.screen.document("prune", pruning_document(pruning, leftovers, dry_run=dry_run))
    elif leftovers:
        session.screen.result(f"removed {len(leftovers)} unfinished uploads and temporary files")
