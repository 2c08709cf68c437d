"""A replica's supervisor: what is worth another start, and what is not."""

from __future__ import annotations

import asyncio

import pytest

from llmctl.errors import JobFailedError
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.serving import InferSpec, RankPlace, ReplicaPlan
from llmctl.worker.infer.orders import AskPort, End, Ended, Exited, Port, Start
from llmctl.worker.infer.router import Router
from llmctl.worker.infer.supervisor import Supervisor


class Host:
    """A host on which every rank ends at once."""

    def __init__(self, code: int, why: str) -> None:
        self.code, self.why = code, why
        self.starts = 0
        self.supervisor: Supervisor

    def tell(self, _node: int, order: object) -> None:
        if isinstance(order, AskPort):
            self.supervisor.hear(Port(replica=0, generation=order.generation, port=1))
        elif isinstance(order, Start):
            self.starts += 1
            end = Exited(replica=0, generation=order.generation, rank=0, code=self.code, why=self.why)
            self.supervisor.hear(end)
        elif isinstance(order, End):
            self.supervisor.hear(Ended(replica=0, generation=order.generation))

    def address(self, _node: int) -> str:
        return "127.0.0.1"

    def is_gone(self, _node: int) -> bool:
        return False


@pytest.mark.parametrize(
    ("code", "why", "starts", "told"),
    [
        (int(ExitCode.NO_RETRY), "model: /x holds no config.json", 1, "model: /x holds no config.json"),
        (int(ExitCode.JOB_FAILED), "", 2, "rank 0 ended with 100"),
        (137, "", 2, "rank 0 ended with 137"),
    ],
)
def test_a_rank_that_says_it_is_hopeless_is_believed(code: int, why: str, starts: int, told: str) -> None:
    """Whatever else ends it, it is started again; and its own reason is the one that people read."""

    async def life() -> None:
        host = Host(code, why)
        plan = ReplicaPlan(index=0, ranks=(RankPlace(node=0, slot=0),))
        spec = InferSpec(model="m", name="m", replicas=(plan,), max_restarts=1)
        router = Router(clock=asyncio.get_running_loop().time)
        host.supervisor = Supervisor(plan, spec, "token", host, router, lambda _text: None)
        with pytest.raises(JobFailedError, match=told):
            await host.supervisor.keep()
        assert host.starts == starts

    asyncio.run(life())
