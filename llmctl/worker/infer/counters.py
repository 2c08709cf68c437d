"""What a serving front counts, as Prometheus text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from llmctl.worker.infer.router import Router
from llmctl.worker.infer.supervisor import Supervisor

FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
WHOLE_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Counts of values by upper bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        return sum(self._counts)

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> Iterator[str]:
        """In Prometheus' form: counts add up from bound to bound."""
        yield f"# TYPE {name} histogram"
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {total}"


class Counters:
    """Since the start of the front."""

    def __init__(self) -> None:
        self.requests: dict[int, int] = {}
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cancelled = 0
        self.first_token = Histogram(FIRST_TOKEN_S)
        self.whole = Histogram(WHOLE_S)

    def request(self, status: int) -> None:
        """One request was answered with this HTTP status."""
        self.requests[status] = self.requests.get(status, 0) + 1

    def retry_after(self, router: Router) -> int:
        """Seconds after which a refused client may find room: what waits, at the pace of late."""
        mean = self.whole.sum / self.whole.count if self.whole.count else 1.0
        return max(1, min(60, round(mean * router.waiting / max(1, router.running))))

    def text(self, router: Router, supervisors: Sequence[Supervisor]) -> str:
        """The page of /metrics."""
        return "\n".join(self._lines(router, supervisors)) + "\n"

    def _lines(self, router: Router, supervisors: Sequence[Supervisor]) -> Iterator[str]:
        yield "# TYPE llmctl_infer_requests_total counter"
        for status, count in sorted(self.requests.items()):
            yield f'llmctl_infer_requests_total{{status="{status}"}} {count}'
        serving = sum(one.serving for one in supervisors)
        for name, kind, value in (
            ("requests_waiting", "gauge", router.waiting),
            ("requests_running", "gauge", router.running),
            ("requests_cancelled_total", "counter", self.cancelled),
            ("requests_retried_total", "counter", router.retried),
            ("prompt_tokens_total", "counter", self.prompt_tokens),
            ("completion_tokens_total", "counter", self.completion_tokens),
            ("replicas", "gauge", len(supervisors)),
            ("replicas_serving", "gauge", serving),
            ("replica_restarts_total", "counter", sum(one.restarts for one in supervisors)),
        ):
            yield f"# TYPE llmctl_infer_{name} {kind}"
            yield f"llmctl_infer_{name} {value}"
        yield from self.first_token.lines("llmctl_infer_first_token_seconds")
        yield from self.whole.lines("llmctl_infer_request_seconds")
