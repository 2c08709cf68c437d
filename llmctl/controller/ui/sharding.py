"""Progress of `data shard`: a bar on a terminal, silence elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.format import rate


class ShardProgress(Protocol):
    """What storage reports; bytes count the input."""

    @property
    def bytes_done(self) -> int: ...

    @property
    def bytes_total(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    @property
    def shards(self) -> int: ...


class ShardingBar:
    """A context manager; `update` is the progress callback."""

    def __init__(self, screen: Screen) -> None:
        self._bar = (
            Progress(
                TextColumn("shard"),
                BarColumn(bar_width=24),
                DownloadColumn(),
                TransferSpeedColumn(),
                TextColumn("{task.fields[made]}"),
                TimeRemainingColumn(),
                console=screen.err,
                transient=True,
            )
            if screen.live
            else None
        )
        self._task = self._bar.add_task("shard", made="") if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, progress: ShardProgress) -> None:
        if self._bar and self._task is not None:
            self._bar.update(
                self._task,
                completed=progress.bytes_done,
                total=progress.bytes_total,
                made=f"{rate(progress.tokens)} tokens" if progress.tokens else f"{progress.shards} shards",
            )
