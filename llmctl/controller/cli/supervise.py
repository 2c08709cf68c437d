"""`llmctl supervise`: the process that `train` and `resume` leave behind. Hidden: nobody types it."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("supervise", hidden=True)(supervise)


def supervise(run: Annotated[str, typer.Argument(help="The run's id, to be seen in `ps`.")]) -> None:
    """Take care of one run to its verdict. What to do comes on stdin; what happens goes to stdout."""
    from llmctl.controller.cli.owed import owing
    from llmctl.controller.cli.session import Session
    from llmctl.controller.supervise.charge import load
    from llmctl.controller.supervise.loop import Supervisor
    from llmctl.controller.supervise.start import starter

    mandate = load(sys.stdin.read())
    charge = mandate.charge
    _say(f"supervising {run}: attempt {charge.attempt} on {', '.join(charge.hosts)}")
    session = Session(hosts=mandate.inventory)
    try:
        connections = session.connect(charge.config.hosts, pinned=mandate.pins)
        begin = starter(
            charge.config,
            charge.policy,
            connections,
            session.archive,
            run_id=charge.run_id,
            created_at=mandate.created_at,
            tree=mandate.tree,
            epoch=charge.epoch,
            allowed=mandate.allowed,
            vocabulary=mandate.vocabulary,
            cache=session.cache,
        )
        owed = partial(owing, session, charge.run_id)
        Supervisor(charge, connections, session.archive, begin, _say, owed).run()
    finally:
        session.close()


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stdout.flush()
