"""The two consoles: stdout is the result, stderr everything else. Colours only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from rich.console import Console
from rich.markup import escape

from llmctl.errors import HostErrors, LlmctlError
from llmctl.wire import codec

UNLIMITED = 10_000
"""Columns where no terminal sets a limit: a pipe gets every id whole."""


def make_console(*, stderr: bool, color: str = "auto") -> Console:
    """A console that neither wraps nor cuts where there is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    plain = color == "never" or (color == "auto" and not stream.isatty())
    console = Console(
        stderr=stderr,
        highlight=False,
        no_color=plain,
        force_terminal=True if color == "always" else None,
        soft_wrap=not stream.isatty(),
        emoji=False,
    )
    if not console.is_terminal or not (stderr or stream.isatty()):
        console.width = UNLIMITED
    return console


SHORTEST_SECRET = 6
"""A shorter value would be found inside ordinary words; masking those would only confuse."""


class Screen:
    """What a verb prints with: `say` for people, `result` for stdout, `document` for machines.

    Attributes:
        has_shown_document: by whatever Screen of this process; an error then adds no second one.
    """

    has_shown_document: ClassVar[bool] = False

    def __init__(self, *, color: str = "auto", json_output: bool = False) -> None:
        self.err = make_console(stderr=True, color=color)
        self.out = make_console(stderr=False, color=color)
        self.json_output = json_output
        self._hidden: tuple[str, ...] = ()

    def hide(self, secrets: Iterable[str]) -> None:
        """Show `***` instead of these values from now on, also where a job prints one itself."""
        self._hidden = tuple(value for value in secrets if len(value) >= SHORTEST_SECRET)

    def clean(self, text: str) -> str:
        """`text` as it may be shown."""
        for value in self._hidden:
            text = text.replace(value, "***")
        return text

    @property
    def live(self) -> bool:
        """Whether a display that redraws itself makes sense."""
        return self.err.is_terminal and not self.json_output

    def say(self, text: str, *, style: str | None = None) -> None:
        """A line for people, on stderr; text is taken as it is, without markup."""
        self.err.print(escape(self.clean(text)), style=style)

    def headline(self, name: str, text: str) -> None:
        """What this is about: a name and its facts, on stderr."""
        self.err.print(f"[bold]{escape(name)}[/]  {escape(text)}")

    def warn(self, text: str) -> None:
        """A line that deserves a look."""
        text = self.clean(text)
        self.err.print(f"[yellow]![/] {escape(text)}")

    def result(self, text: str) -> None:
        """A line of the command's result, on stdout."""
        self.out.print(escape(self.clean(text)))

    def document(self, kind: str, body: Mapping[str, Any], *, one_line: bool = False) -> None:
        """The command's result as one JSON document on stdout, and nothing else there.

        `one_line`: for a verb that prints a document again and again (JSON lines).
        """
        Screen.has_shown_document = True
        payload = {"schema": codec.SCHEMA, "kind": kind, **codec.encode(dict(body))}
        escaped = not (sys.stdout.encoding or "ascii").lower().startswith("utf")
        text = json.dumps(payload, indent=None if one_line else 2, ensure_ascii=escaped)
        sys.stdout.write(self.clean(text) + "\n")
        sys.stdout.flush()

    def error(self, error: LlmctlError, exit_code: int) -> None:
        """One line per host that failed, with what to do below it."""
        errors = error.errors if isinstance(error, HostErrors) else [error]
        for number, one in enumerate(errors, 1):
            last = f"  [dim](exit {exit_code})[/]" if number == len(errors) else ""
            self.err.print(f"[bold red]✗[/] {escape(one.line())}{last}")
            for line in (one.hint or "").splitlines():
                self.err.print(f"  {escape(line)}", style="cyan")
