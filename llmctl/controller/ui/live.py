"""`-w`: ask again and again, show the newest answer in place of the last; a lost connection ends nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from llmctl.controller.ui.console import Screen
from llmctl.errors import LlmctlError, NotFoundError

T = TypeVar("T")


def refreshed(ask: Callable[[], T], every_s: float) -> Iterator[tuple[T, LlmctlError | None]]:
    """The answers without end; where asking failed, the last answer and why.

    Raises:
        LlmctlError: the first time failed: there is nothing to show.
        NotFoundError: what is asked for is gone.
    """
    last = ask()
    yield last, None
    while True:
        time.sleep(every_s)
        error: LlmctlError | None = None
        try:
            last = ask()
        except NotFoundError:
            raise
        except LlmctlError as caught:
            error = caught
        yield last, error


def with_error(shown: RenderableType, error: LlmctlError | None) -> RenderableType:
    """The last view, and below it that it is not fresh."""
    return shown if error is None else Group(shown, Text(f"lost contact: {error.line()}", style="yellow"))


def live(screen: Screen, pictures: Iterable[RenderableType]) -> None:
    """Show each picture in the place of the one before; without a terminal, one after the other."""
    if not screen.out.is_terminal:
        for picture in pictures:
            screen.out.print(picture)
        return
    with Live(console=screen.out, auto_refresh=False) as display:
        for picture in pictures:
            display.update(picture, refresh=True)
