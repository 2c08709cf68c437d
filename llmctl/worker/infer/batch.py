"""`infer batch` on the front: input lines to requests, answers back into input order, part by part.

Bounded: at most a few parts are open at a time, whatever the size of the input; a new one is read when the
replicas could run dry. A part whose lines are all answered is written and forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, BinaryIO

from llmctl.errors import JobFailedError
from llmctl.storage.files import open_store
from llmctl.storage.uris import split
from llmctl.wire.infer import GENERATE
from llmctl.wire.serving import BatchManifest, BatchSpec
from llmctl.worker.infer.chat import ChatTemplate
from llmctl.worker.infer.duty import Duty
from llmctl.worker.infer.generation import Generation, collect, last_answer
from llmctl.worker.infer.lines import (
    LONGEST_LINE,
    Bad,
    Reader,
    Wanted,
    answer_record,
    error_record,
    text_record,
)
from llmctl.worker.infer.parts import Done, Output, open_output
from llmctl.worker.infer.router import capacity

RETRIES = 8
"""Replicas that one line may lose before it is recorded as an error: it may be what kills them."""

STOPPED = 143


class InputFile:
    """The input, in blocks of lines; reads block, so they happen in a thread."""

    def __init__(self, batch: BatchSpec, size: int) -> None:
        folder, self._name = split(batch.input)
        self._store = open_store(folder)
        self._size = size
        self._stream: BinaryIO | None = None
        self._lines = self._bytes = 0

    def block(self, count: int) -> list[bytes]:
        """The next lines, at most `count`; none at the end. A line that is too long comes cut."""
        if self._stream is None:
            self._stream = self._store.open_read(self._name)
        found: list[bytes] = []
        while len(found) < count and (line := self._line(self._stream)):
            found.append(line)
        self._lines += len(found)
        return found

    def _line(self, stream: BinaryIO) -> bytes:
        line = stream.readline(LONGEST_LINE + 1)
        self._bytes += len(line)
        if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
                self._bytes += len(rest)
            self._bytes += len(rest)
        return line

    def total(self) -> int | None:
        """Lines in all, by the length of those seen; exact at the end."""
        if not self._bytes:
            return None
        return self._lines + round((self._size - self._bytes) * self._lines / self._bytes)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


class Batch:
    """One batch, from its first to its last part."""

    def __init__(self, duty: Duty, batch: BatchSpec, output: Output, reader: Reader) -> None:
        self._duty, self._batch, self._output, self._reader = duty, batch, output, reader
        self._input = InputFile(batch, output.plan.input_size)
        self._done: list[Done] = []
        self._open: set[asyncio.Task[Done]] = set()

    async def run(self) -> BatchManifest | None:
        """The manifest; None where a stop came first: what is whole by then stays."""
        try:
            async for first, lines in self._blocks():
                known = await asyncio.to_thread(self._output.find, first, len(lines))
                if known is not None:
                    self._keep(known, known.part.lines)
                    continue
                self._open.add(asyncio.ensure_future(self._part(first, lines)))
            if not await self._finish_open():
                return None
            self._duty.progress.tell(len(self._done) and sum(d.part.lines for d in self._done), last=True)
            return await asyncio.to_thread(self._output.finish, self._done)
        finally:
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
            self._input.close()

    async def _blocks(self) -> AsyncIterator[tuple[int, list[bytes]]]:
        """(number of its first line, its lines) of each part, when there is room for it."""
        first = 0
        while not self._duty.stop.asked.is_set():
            lines = await asyncio.to_thread(self._input.block, self._batch.part_lines)
            if not lines:
                return
            yield first, lines
            first += len(lines)
            await self._room()

    async def _room(self) -> None:
        """Until the replicas might run dry: as many lines are waiting as they work on."""
        infer = self._duty.infer
        enough = capacity(infer.max_batch) * len(infer.replicas) * 2
        stop = asyncio.ensure_future(self._duty.stop.asked.wait())
        try:
            while len(self._open) * self._batch.part_lines > enough and len(self._open) > 1:
                await self._one_ends(stop)
                if stop.done():
                    return
        finally:
            stop.cancel()

    async def _one_ends(self, stop: asyncio.Future[Any]) -> None:
        await asyncio.wait({*self._open, stop}, return_when=asyncio.FIRST_COMPLETED)
        for task in [one for one in self._open if one.done()]:
            self._open.discard(task)
            self._keep(task.result(), 0)

    async def _finish_open(self) -> bool:
        """Whether all parts came to their end; a stop waits for them only for so long."""
        stop = asyncio.ensure_future(self._duty.stop.asked.wait())
        try:
            while self._open and not stop.done():
                await self._one_ends(stop)
            if not stop.done():
                return True
            if self._open:
                await asyncio.wait(self._open, timeout=self._duty.stop.drain_s)
            return False
        finally:
            stop.cancel()

    def _keep(self, done: Done, fresh: int) -> None:
        self._done.append(done)
        if fresh:
            self._count(fresh, 0)

    def _count(self, lines: int, tokens: int) -> None:
        self._duty.progress.count(lines, tokens)
        self._duty.progress.tell(self._input.total())

    async def _part(self, first: int, lines: list[bytes]) -> Done:
        wanted = await asyncio.to_thread(self._read, first, lines)
        records = await asyncio.gather(*(self._record(one) for one in wanted))
        return await asyncio.to_thread(self._output.write, first, records)

    def _read(self, first: int, lines: list[bytes]) -> list[Wanted | Bad]:
        return [self._reader.read(first + number, line) for number, line in enumerate(lines)]

    async def _record(self, wanted: Wanted | Bad) -> dict[str, Any]:
        record = error_record(wanted) if isinstance(wanted, Bad) else await self._answered(wanted)
        made = record.get("completion_tokens")
        self._count(1, record.get("prompt_tokens", 0) if made is None else made)
        return record

    async def _answered(self, wanted: Wanted) -> dict[str, Any]:
        router = self._duty.router
        job = router.submit(wanted.order, retries=RETRIES)
        try:
            if wanted.order.task == GENERATE:
                generation = Generation(router, self._reader.words, job, wanted.stops)
                return text_record(wanted, await collect(generation))
            return answer_record(wanted, await last_answer(job))
        except JobFailedError as error:
            return error_record(Bad(index=wanted.index, id=wanted.id, error=error.message))


async def run_batch(duty: Duty) -> int:
    """The batch of the run; its exit code."""
    batch = duty.infer.batch
    if batch is None:
        raise JobFailedError("no batch to run", stage="infer")
    output = await asyncio.to_thread(open_output, batch, duty.infer.model)
    manifest = await asyncio.to_thread(output.claim)
    if manifest is None:
        model = await duty.model
        reader = Reader(
            words=model.words,
            template=ChatTemplate(model.words),
            task=batch.task,
            defaults=batch.sampling,
            limit=duty.infer.max_tokens,
            vocab_size=model.vocab_size,
        )
        manifest = await Batch(duty, batch, output, reader).run()
    if manifest is None:
        duty.note("stopped; the same command goes on where it was")
        return STOPPED
    duty.note(_summary(manifest, batch.output))
    return 0


def _summary(manifest: BatchManifest, where: str) -> str:
    errors = f", {manifest.errors} of them errors" if manifest.errors else ""
    return (
        f"{manifest.lines} lines{errors}: {manifest.prompt_tokens} tokens read, "
        f"{manifest.completion_tokens} made · {where}"
    )
