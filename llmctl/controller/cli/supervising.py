"""Leave a supervisor behind, for the verbs that start a run: `train` and `resume`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.errors import ConfigError, LlmctlError

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.types import RunConfig
    from llmctl.controller.plan.plan import Plan
    from llmctl.controller.supervise.loop import Charge


def supervise_plan(
    session: Session,
    config: RunConfig,
    plan: Plan,
    allowed: tuple[str, ...],
) -> None:
    """A process beside this command, which outlives it. Without one the run goes on all the same.

    Args:
        config: its hosts are all that the run may use, which may be more than the plan's.
        allowed: what may differ between hosts.
    """
    from llmctl.controller.plan.attempts import policy_of
    from llmctl.controller.supervise.loop import Charge
    from llmctl.controller.supervise.spawn import new_holder

    node = plan.nodes[0]
    charge = Charge(
        config=config,
        policy=policy_of(config.job, [host.name for host in config.hosts]),
        run_id=plan.run_id,
        attempt=plan.attempt,
        hosts=tuple(one.host for one in plan.nodes),
        peers=node.peers,
        epoch=node.epoch,
        holder=new_holder(),
    )
    leave(session, charge, created_at=node.created_at, tree=node.tree, allowed=allowed)


def leave(
    session: Session, charge: Charge, *, created_at: float, tree: str | None, allowed: tuple[str, ...]
) -> None:
    """Start the process that takes care of `charge`."""
    from llmctl.controller.config.corpus import corpus_vocabulary
    from llmctl.controller.supervise.charge import Mandate
    from llmctl.controller.supervise.spawn import spawn

    config = charge.config
    mandate = Mandate(
        charge=charge,
        created_at=created_at,
        tree=tree,
        allowed=allowed,
        vocabulary=corpus_vocabulary(config.job, Path(config.base)),
        inventory=_inventory_path(session),
    )
    try:
        spawn(mandate, session.settings.state_dir)
    except LlmctlError as error:
        session.screen.warn(f"{error.line()}; the run goes on, but nothing follows a failed attempt")


def _inventory_path(session: Session) -> str | None:
    """The hosts file, for jump hosts; a run of the ledger needs none."""
    try:
        return session.inventory.path
    except ConfigError:
        return None
