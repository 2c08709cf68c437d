"""One request from its tokens to its text: what comes from a replica, as pieces that may be shown.

Both `batch` and `serve` read requests through this: a stop string or a log-probability means the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from llmctl.errors import JobFailedError
from llmctl.wire.infer import ERROR, STOP, Answer, TokenLogprob
from llmctl.worker.infer.router import Again, Job, Router
from llmctl.worker.infer.text import Detokenizer, StopStrings, Vocabulary


@dataclass(frozen=True)
class Piece:
    """What is new of one answer.

    Attributes:
        text: certain by now, stop strings cut off.
        logprobs: of the tokens that came, whether their text shows already or not.
        finish: None: more will come; `stop` or `length`: this was the last piece.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None


class Generation:
    """A submitted request. Iterate it to the end, or `close` it: then the replica is told to stop.

    Args:
        stops: strings that end the text; they are not part of it.
    """

    def __init__(self, router: Router, words: Vocabulary, job: Job, stops: Sequence[str] = ()) -> None:
        self._router, self._words, self._job, self._stops = router, words, job, tuple(stops)
        self._ended = False

    async def pieces(self) -> AsyncIterator[Piece]:
        """Pieces as they come. RESTART voids those before it, which can't be once `shown` was called.

        Raises:
            JobFailedError: the replica refused it, or it was lost too often.
        """
        text, stop = Detokenizer(self._words), StopStrings(self._stops)
        while True:
            answer = await self._job.inbox.get()
            if isinstance(answer, Again):
                text, stop = Detokenizer(self._words), StopStrings(self._stops)
                yield RESTART
                continue
            if answer.finish == ERROR:
                self._ended = True
                raise JobFailedError(answer.error or "the replica failed", stage="infer")
            new = stop.add(text.add(answer.tokens))
            if answer.finish is not None and not stop.hit:
                new += stop.add(text.finish()) + ("" if stop.hit else stop.finish())
            finish = STOP if stop.hit else answer.finish
            self._ended = answer.finish is not None
            yield Piece(text=new, tokens=answer.tokens, logprobs=answer.logprobs, finish=finish)
            if finish is not None:
                self.close()
                return

    def shown(self) -> None:
        """Some of it has left us: it can't start over any more."""
        self._job.shown = True

    def close(self) -> None:
        """Nobody wants the rest."""
        if not self._ended:
            self._ended = True
            self._router.cancel(self._job)


RESTART = Piece(text="")
"""All pieces before this one are void: the request starts over."""


@dataclass
class Collected:
    """All pieces of one answer together."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str = STOP

    def add(self, piece: Piece) -> None:
        """One more piece, or the news that all before is void."""
        if piece is RESTART:
            self.text, self.tokens, self.logprobs = "", [], []
            return
        self.text += piece.text
        self.tokens += piece.tokens
        self.logprobs += piece.logprobs
        self.finish = piece.finish or self.finish


async def collect(generation: Generation) -> Collected:
    """The whole answer. Raises JobFailedError."""
    found = Collected()
    with contextlib.closing(generation):
        async for piece in generation.pieces():
            found.add(piece)
    return found


async def last_answer(job: Job) -> Answer:
    """The one answer of a request that generates nothing (`score`, `embed`). Raises JobFailedError."""
    while True:
        answer = await job.inbox.get()
        if isinstance(answer, Again):
            continue
        if answer.finish == ERROR:
            raise JobFailedError(answer.error or "the replica failed", stage="infer")
        if answer.finish is not None:
            return answer
