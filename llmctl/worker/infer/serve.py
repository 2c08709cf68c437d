"""`infer serve` on the front."""

from __future__ import annotations

from llmctl.worker.infer.duty import Duty


async def run_serve(duty: Duty) -> int:
    await duty.stopping.wait()
    return 143
