"""`llmctl data send`: a data set from here to a folder of every host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.options import (
    HostsOption,
    LimitOption,
    OutputOption,
    PoolOption,
    checked_output,
)

if TYPE_CHECKING:
    from pathlib import Path

    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.types import Host
    from llmctl.controller.execute.fanout import Delivered
    from llmctl.controller.execute.sending import Parcel
    from llmctl.errors import LlmctlError

EPILOG = (
    "Examples:\n\n"
    "    llmctl data send shards/ /data/shards --fan-out\n\n"
    "    llmctl data send shards/ '~/shards' --limit 'gpu-*'"
)


def send(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A data set on this machine.")],
    dest: Annotated[
        str, typer.Argument(metavar="DEST", help="Folder on every host: absolute, or below '~/' there.")
    ],
    fan_out: Annotated[
        bool,
        typer.Option("--fan-out", help="Sent once and copied from host to host, not from here to each."),
    ] = False,
    pool: PoolOption = None,
    limit: LimitOption = None,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Copy a data set to the same folder of every host; the job's `data.uri` then names that folder.

    Each file is checked by its hash as it arrives and the manifest comes last, so that a transfer that was
    cut is no data set; a second one sends what is missing. Where another data set stands nothing is changed.
    """
    from llmctl.controller.cli.hosts.choose import chosen_hosts
    from llmctl.controller.cli.session import Session
    from llmctl.controller.execute.sending import parcel_of
    from llmctl.errors import HostErrors, LlmctlError

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        folder, to = _local(source), _there(dest)
        chosen = chosen_hosts(session, pool, limit)
        parcel = parcel_of(folder)
        results = _send(session, parcel, to, chosen, by_tree=fan_out)
    finally:
        session.close()
    _show(session, parcel, dest, results)
    errors = [one for one in results.values() if isinstance(one, LlmctlError)]
    if errors:
        raise HostErrors(errors)


def _local(source: str) -> Path:
    from llmctl.errors import ConfigError
    from llmctl.storage.uris import is_local, local_path

    if not is_local(source):
        raise ConfigError(
            f"{source} is a store, not a folder of this machine",
            hint="hosts read from stores themselves: `data: {uri: …}` in the job",
        )
    return local_path(source)


def _there(dest: str) -> str:
    from llmctl.errors import ConfigError

    if not dest.startswith(("/", "~/")):
        raise ConfigError(f"{dest} must start with `/` or `~/`: it is a folder of the hosts")
    return dest.rstrip("/") or "/"


def _send(
    session: Session, parcel: Parcel, dest: str, chosen: tuple[Host, ...], *, by_tree: bool
) -> dict[str, Delivered | LlmctlError]:
    from llmctl.controller.execute.identity import Recogniser
    from llmctl.controller.execute.sending import send as send_parcel
    from llmctl.controller.ui.format import size
    from llmctl.controller.ui.stages import Stages

    recogniser = Recogniser(session.book)
    what = f"{parcel.files} files ({size(parcel.bytes)})"
    with Stages(session.screen).stage("send", f"{what} to {len(chosen)} hosts") as stage:
        results = send_parcel(
            parcel,
            dest,
            chosen,
            session.connect(chosen),
            session.archive,
            recogniser,
            by_tree=by_tree,
            progress=lambda count: stage.add_bytes("", count),
        )
        stage.text = f"{what} · {size(stage.bytes)} left this machine"
    for line in recogniser.lines():
        session.screen.warn(line)
    return results


def _show(session: Session, parcel: Parcel, dest: str, results: dict[str, Delivered | LlmctlError]) -> None:
    from llmctl.controller.ui.format import size
    from llmctl.errors import LlmctlError
    from llmctl.wire import codec

    if session.json:
        shown = {
            name: {"error": one.message} if isinstance(one, LlmctlError) else codec.encode(one)
            for name, one in results.items()
        }
        session.screen.document(
            "data-send", {"dest": dest, "files": parcel.files, "bytes": parcel.bytes, "hosts": shown}
        )
        return
    for name, one in results.items():
        if isinstance(one, LlmctlError):
            continue
        came = f"{size(one.bytes)} from {one.source or 'here'}" if one.bytes else "there already, compared"
        session.screen.result(f"{name}  {dest} · {came}")
