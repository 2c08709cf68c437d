"""PURE: what faulthandler wrote of a rank, and whether the rank waits for others there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

_FRAME = re.compile(r'^  File "(.*)", line (\d+|\?\?\?) in (.+)$')
_THREAD = re.compile(r"^(Current thread|Thread) 0x")

_WAITING_FILES = ("/torch/distributed/", "/torch/autograd/graph.py", "/torch/cuda/streams.py")
"""torch's collectives; and the backward pass, in which DDP, FSDP and pipelines have theirs."""

_WAITING_LINES = re.compile(
    r"\.(wait|synchronize|item|tolist|recv|isend|irecv|send)\(|all_reduce|all_gather|reduce_scatter|barrier"
    r"|broadcast|all_to_all"
)
"""Calls of C code, which has no frame of its own, in the innermost line of a rank that waits."""

_LIBRARY = re.compile(r"/(site|dist)-packages/|/python3\.\d+/")

_NEAR = 6
"""Frames from the innermost one in which a library's file counts."""


@dataclass(frozen=True)
class Frame:
    """One line of a stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{_short(self.file)}:{self.line} in {self.function}"


def main_thread(text: str) -> tuple[Frame, ...]:
    """Frames of the main thread, innermost first: the last thread that faulthandler writes."""
    frames: list[Frame] = []
    for line in text.splitlines():
        if _THREAD.match(line):
            frames = []
        elif found := _FRAME.match(line):
            number = int(found[2]) if found[2].isdigit() else 0
            frames.append(Frame(file=found[1], line=number, function=found[3]))
    return tuple(frames)


def waits(frames: tuple[Frame, ...], source: Callable[[str, int], str]) -> bool:
    """Whether this rank is in a collective.

    Args:
        source: the text of a line of a file; empty where it can't be read.
    """
    if any(mark in frame.file for frame in frames[:_NEAR] for mark in _WAITING_FILES):
        return True
    return bool(frames) and bool(_WAITING_LINES.search(source(frames[0].file, frames[0].line)))


def where(frames: tuple[Frame, ...]) -> str:
    """The innermost line that is not a library's: `train.py:41 in load`."""
    if not frames:
        return "no Python stack"
    own = [frame for frame in frames if not _of_library(frame.file)]
    return str((own or frames)[0])


def _of_library(file: str) -> bool:
    return _LIBRARY.search(file) is not None


def _short(file: str) -> str:
    """`worker/step.py`: the file with the folder that it is in."""
    folder, name = os.path.split(file)
    inner = os.path.basename(folder)
    return name if inner in ("", "code") else f"{inner}/{name}"
