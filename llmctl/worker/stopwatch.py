"""A rank's own part of a step, measured where the work happens: on a GPU by its events, else by the clock."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """From `start` to `stop`. On a GPU reading it waits for the work in between, so read it late."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[torch.cuda.Event] = []
        self._began = self._ended = 0.0

    def start(self) -> None:
        """The work begins."""
        self._began = self._mark()

    def stop(self) -> None:
        """What follows is waiting for other ranks."""
        self._ended = self._mark()

    def seconds(self) -> float:
        """Between the two marks; 0 where one is missing."""
        if not self._cuda:
            return max(0.0, self._ended - self._began)
        if len(self._marks) < 2:
            return 0.0
        self._marks[-1].synchronize()
        return float(self._marks[0].elapsed_time(self._marks[-1])) / 1e3

    def _mark(self) -> float:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        return time.monotonic()
