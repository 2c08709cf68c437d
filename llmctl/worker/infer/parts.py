"""A batch's output folder: parts written whole, each for a fixed range of input lines, and a manifest last.

The folder itself is the memory of a batch: whoever runs it again finds the parts that are there, makes the
others, and so each input line is answered exactly once, however often it was killed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.errors import ConfigError, NotFoundError
from llmctl.storage.files import Store, open_store
from llmctl.storage.uris import split
from llmctl.wire import codec
from llmctl.wire.serving import (
    BATCH_MANIFEST,
    BATCH_PLAN,
    BatchManifest,
    BatchPart,
    BatchPlan,
    BatchSpec,
    part_name,
)

STAGE = "output"


@dataclass(frozen=True)
class Done:
    """One part that is in the folder, and what is in it."""

    part: BatchPart
    errors: int
    prompt_tokens: int
    completion_tokens: int


class Output:
    """The folder of one batch. Every method blocks: call it from a thread."""

    def __init__(self, store: Store, plan: BatchPlan) -> None:
        self._store = store
        self.plan = plan
        self._there: dict[str, int] = {}

    def claim(self) -> BatchManifest | None:
        """Make the folder this batch's; its manifest where it is complete already.

        Raises:
            ConfigError: it holds another batch's results.
        """
        listed = {file.path: file.size for file in self._store.list()}
        if BATCH_PLAN in listed:
            known = codec.loads(BatchPlan, self._store.read_bytes(BATCH_PLAN))
            if known != self.plan:
                raise ConfigError(
                    f"{self._store.uri} holds the results of another batch ({_difference(known, self.plan)})",
                    hint="name an empty folder with --output",
                    stage=STAGE,
                )
        elif any(name.startswith("part-") or name == BATCH_MANIFEST for name in listed):
            raise ConfigError(
                f"{self._store.uri} holds results of something else", hint="name an empty folder", stage=STAGE
            )
        else:
            self._store.write_bytes(BATCH_PLAN, codec.dumps(self.plan).encode())
        self._there = listed
        if BATCH_MANIFEST in listed:
            return codec.loads(BatchManifest, self._store.read_bytes(BATCH_MANIFEST))
        return None

    def find(self, first: int, lines: int) -> Done | None:
        """The part of these input lines, where it is there and whole."""
        name = part_name(first)
        if name not in self._there:
            return None
        data = self._store.read_bytes(name)
        try:
            records = [json.loads(line) for line in data.splitlines()]
            whole = [record["index"] for record in records] == list(range(first, first + lines))
        except (ValueError, KeyError, TypeError):
            return None
        return _done(first, data, records) if whole else None

    def write(self, first: int, records: Sequence[dict[str, Any]]) -> Done:
        """One part, whole or not at all."""
        lines = [json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in records]
        data = "".join(line + "\n" for line in lines).encode()
        self._store.write_bytes(part_name(first), data)
        return _done(first, data, records)

    def finish(self, parts: Iterable[Done]) -> BatchManifest:
        """The marker that all is there; written last."""
        ordered = sorted(parts, key=lambda done: done.part.first)
        manifest = BatchManifest(
            plan=self.plan,
            parts=tuple(done.part for done in ordered),
            lines=sum(done.part.lines for done in ordered),
            errors=sum(done.errors for done in ordered),
            prompt_tokens=sum(done.prompt_tokens for done in ordered),
            completion_tokens=sum(done.completion_tokens for done in ordered),
        )
        self._store.write_bytes(BATCH_MANIFEST, codec.dumps(manifest).encode())
        return manifest


def open_output(batch: BatchSpec, model: str) -> Output:
    """The folder of `batch`, and what a second run of the same would find in it. Raises NotFoundError."""
    folder, name = split(batch.input)
    try:
        file = open_store(folder).info(name)
    except NotFoundError as error:
        hint = "it is read on the run's first host: a path there, or a URL"
        raise NotFoundError(error.message, hint=hint, stage="input") from None
    plan = BatchPlan(
        input=batch.input,
        input_size=file.size,
        input_version=file.version,
        model=model,
        task=batch.task,
        part_lines=batch.part_lines,
        sampling=dict(batch.sampling),
    )
    return Output(open_store(batch.output), plan)


def _done(first: int, data: bytes, records: Sequence[dict[str, Any]]) -> Done:
    part = BatchPart(
        path=part_name(first),
        first=first,
        lines=len(records),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return Done(
        part=part,
        errors=sum("error" in record for record in records),
        prompt_tokens=sum(record.get("prompt_tokens", 0) for record in records),
        completion_tokens=sum(record.get("completion_tokens", 0) for record in records),
    )


def _difference(known: BatchPlan, wanted: BatchPlan) -> str:
    """What two plans disagree in: `model differs`."""
    fields = [name for name, value in codec.encode(known).items() if value != codec.encode(wanted)[name]]
    return ", ".join(fields) + (" differs" if len(fields) == 1 else " differ")
