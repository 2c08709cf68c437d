"""`llmctl ckpt prune --damaged`: checkpoints that are not what was saved go, after they were shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.storage.files import Store
    from llmctl.storage.retention import Pruning, Verify


def prune(session: Session, store: Store, verify: Verify | None, *, dry_run: bool, yes: bool) -> None:
    """Find, show, ask, remove, tell.

    Args:
        verify: reads one checkpoint and lists what is wrong; None: markers and sizes decide.

    Raises:
        ConfigError: nobody can be asked. IntegrityError: not one is good; nothing is removed.
    """
    from llmctl.controller.ui.checkpoints import pruning_document, pruning_lines
    from llmctl.storage.checkpoints import survey
    from llmctl.storage.retention import damaged_plan

    pruning = damaged_plan(store, survey(store), verify)
    if not session.json:
        for line in pruning_lines(pruning):
            session.screen.result(line)
    if pruning.go and not dry_run:
        if not yes:
            _confirm(session, store, pruning)
        pruning = _removed(session, store, pruning)
    if session.json:
        session.screen.document("prune", pruning_document(pruning, (), dry_run=dry_run))


def _confirm(session: Session, store: Store, pruning: Pruning) -> None:
    from llmctl.controller.ui.checkpoints import step_names
    from llmctl.errors import ConfigError
    from llmctl.wire.exitcodes import ExitCode

    which = step_names(pruning.go)
    if not session.interactive:
        raise ConfigError(
            f"checkpoint {which} of {store.uri}: damaged, and nobody can be asked",
            hint=f"llmctl ckpt prune {store.uri} --damaged --yes",
        )
    if not typer.confirm(f"remove checkpoint {which} of {store.uri} for good?", err=True):
        session.screen.say("nothing was removed")
        raise typer.Exit(ExitCode.CANCELLED)


def _removed(session: Session, store: Store, pruning: Pruning) -> Pruning:
    """What went in the end: reading and asking take long, and a run may have saved a step again meanwhile."""
    from dataclasses import replace

    from llmctl.storage.retention import remove_unchanged

    went = []
    for one in pruning.go:
        if remove_unchanged(store, one):
            went.append(one)
        else:
            session.screen.say(f"checkpoint {one.step} has changed since it was read, and stays")
    return replace(pruning, go=tuple(went))
