"""`infer serve` on the front: the HTTP server's life, from its port to the last answered request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

from aiohttp import web

from llmctl.errors import ConfigError, JobFailedError
from llmctl.wire import environment
from llmctl.wire.metrics import EndpointLine
from llmctl.wire.serving import ServeSpec
from llmctl.worker.infer.api import Api
from llmctl.worker.infer.chat import ChatTemplate
from llmctl.worker.infer.deadline import bounded
from llmctl.worker.infer.duty import Duty
from llmctl.worker.infer.openai import Model

STOPPED = 143
POLL_S = 0.1
CLOSE_S = 2.0


async def run_serve(duty: Duty) -> int:
    """Serve until the run is told to stop, then let what is being answered finish; the exit code.

    Raises:
        LlmctlError: no tokenizer, no key though one is needed, or the port is taken.
    """
    spec = duty.infer.serve
    if spec is None:
        raise JobFailedError("nothing to serve", stage="infer")
    key = os.environ.get(environment.INFER_API_KEY) or None
    if spec.needs_key and key is None:
        raise ConfigError("the API key did not arrive", stage="serve")
    found = await duty.model
    model = Model(
        name=duty.infer.name,
        words=found.words,
        template=ChatTemplate(found.words),
        limit=duty.infer.max_tokens,
        vocab_size=found.vocab_size,
    )
    api = Api(duty, model, key)
    runner = web.AppRunner(
        api.application(), handler_cancellation=True, access_log=None, shutdown_timeout=CLOSE_S
    )
    await runner.setup()
    try:
        site = await _listen(runner, spec)
        await _run(duty, api, runner, site)
    finally:
        await runner.cleanup()
    return STOPPED


async def _listen(runner: web.AppRunner, spec: ServeSpec) -> web.TCPSite:
    site = web.TCPSite(runner, spec.address, spec.port, reuse_address=True)
    try:
        await site.start()
    except OSError as error:
        hint = "choose another with --port, or --port 0"
        raise ConfigError(f"port {spec.port}: {error.strerror}", hint=hint, stage="serve") from None
    return site


async def _run(duty: Duty, api: Api, runner: web.AppRunner, site: web.TCPSite) -> None:
    told = False
    while not duty.stop.asked.is_set():
        if not told and any(one.serving for one in duty.supervisors):
            told = True
            _announce(duty, runner)
        duty.progress.tell(None)
        with contextlib.suppress(asyncio.TimeoutError):
            await bounded(duty.stop.asked.wait(), 1.0 if told else POLL_S)
    api.draining = True
    await site.stop()
    until = time.monotonic() + duty.stop.drain_s
    while api.active and time.monotonic() < until:
        await asyncio.sleep(POLL_S)
    if api.active:
        duty.note(f"{api.active} requests were cut: they needed longer than the grace time")


def _announce(duty: Duty, runner: web.AppRunner) -> None:
    """Say where clients find it: whoever follows the run opens a tunnel to there."""
    address, port = runner.addresses[0][:2]
    duty.progress.write(EndpointLine(t=time.time(), address=address, port=port, model=duty.infer.name))
