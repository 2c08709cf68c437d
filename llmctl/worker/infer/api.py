"""HTTP in front of the router: OpenAI's API by aiohttp. A client that leaves ends its request's work."""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from llmctl.errors import JobFailedError
from llmctl.worker.infer.counters import Counters
from llmctl.worker.infer.duty import Duty
from llmctl.worker.infer.generation import RESTART, Collected, Generation, Piece
from llmctl.worker.infer.openai import Ask, Model, Reply, RequestError
from llmctl.worker.infer.router import QueueFullError

LARGEST_BODY = 16 << 20
RETRIES = 1
OPEN = frozenset(("/health",))
"""What needs no key: whoever balances load has none."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """The endpoint's application.

    Args:
        key: what clients must show; None: nothing.
    """

    def __init__(self, duty: Duty, model: Model, key: str | None) -> None:
        self._duty, self._model, self._key = duty, model, key
        self.counters = Counters()
        self.draining = False
        self.active = 0
        self._created = int(time.time())

    def application(self) -> web.Application:
        """Its routes."""
        app = web.Application(middlewares=[self._around], client_max_size=LARGEST_BODY)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._one_model)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        return app

    @web.middleware
    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Keys, errors in OpenAI's form, and counting."""
        try:
            self._admit(request)
            response = await handler(request)
        except RequestError as error:
            headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
            response = web.json_response(error.document(), status=error.status, headers=headers)
        except web.HTTPException as error:
            told = RequestError(error.reason, status=error.status)
            response = web.json_response(told.document(), status=error.status)
        if request.path.startswith("/v1/"):
            self.counters.request(response.status)
        return response

    def _admit(self, request: web.Request) -> None:
        if self._key is not None and request.path not in OPEN:
            kind, _, given = request.headers.get("Authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self._key.encode())
            if kind.lower() != "bearer" or not right:
                error = RequestError("a valid API key is needed", status=401, kind="authentication_error")
                error.code = "invalid_api_key"
                raise error
        if self.draining and request.method == "POST":
            raise RequestError("the server is stopping", status=503, kind="server_error")

    # --- small pages ---

    def _model_document(self) -> dict[str, Any]:
        return {
            "id": self._model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "llmctl",
            "max_model_len": self._model.limit,
        }

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._model_document()]})

    async def _one_model(self, request: web.Request) -> web.Response:
        if request.match_info["name"] != self._model.name:
            raise RequestError(f"there is only {self._model.name}", status=404)
        return web.json_response(self._model_document())

    async def _health(self, _request: web.Request) -> web.Response:
        """200 where a replica serves: each proves it by answering real requests."""
        serving = sum(one.serving for one in self._duty.supervisors)
        state = "stopping" if self.draining else ("ok" if serving else "starting")
        document = {"status": state, "replicas": len(self._duty.supervisors), "serving": serving}
        return web.json_response(document, status=200 if state == "ok" else 503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        text = self.counters.text(self._duty.router, self._duty.supervisors)
        return web.Response(text=text, content_type="text/plain")

    # --- requests ---

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        ask = self._model.ask(await _body(request), chat=chat)
        try:
            job = self._duty.router.submit(ask.order, retries=RETRIES)
        except QueueFullError as error:
            refusal = RequestError(error.message, status=429, kind="rate_limit_error")
            refusal.retry_after = self.counters.retry_after(self._duty.router)
            raise refusal from None
        generation = Generation(self._duty.router, self._model.words, job, ask.stops)
        reply = Reply(
            id=("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
            created=int(time.time()),
            model=self._model.name,
            ask=ask,
            words=self._model.words,
        )
        answer = _Answer(self.counters, ask)
        self.active += 1
        try:
            if ask.stream:
                return await self._stream(request, generation, reply, answer)
            async for piece in generation.pieces():
                answer.add(piece)
            found = answer.found
            document = reply.whole(found.text, found.logprobs, found.finish, len(found.tokens))
            return web.json_response(document)
        except JobFailedError as error:
            raise RequestError(error.message, status=503, kind="server_error") from None
        except asyncio.CancelledError:
            self.counters.cancelled += 1
            raise
        finally:
            self.active -= 1
            generation.close()
            self._duty.progress.count(1, answer.close())

    async def _stream(
        self, request: web.Request, generation: Generation, reply: Reply, answer: _Answer
    ) -> web.StreamResponse:
        """Events as the answer comes. Nothing is sent before its first piece, so that an error until then is
        an HTTP status, and a lost replica's request can start over."""
        pieces = generation.pieces()
        piece = await anext(pieces)
        while not piece.text and piece.finish is None:
            answer.add(piece)
            piece = await anext(pieces)
        generation.shown()
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        first = reply.first_chunk()
        if first is not None:
            await _event(response, first)
        held = list(answer.found.logprobs)  # of tokens whose text did not show yet
        try:
            while True:
                answer.add(piece)
                if piece.text or piece.logprobs or piece.finish is not None:
                    told = (*held, *piece.logprobs)
                    held = []
                    await _event(response, reply.chunk(piece.text, told, piece.finish))
                if piece.finish is not None:
                    break
                piece = await anext(pieces)
            if answer.ask.usage:
                await _event(response, reply.usage_chunk(len(answer.found.tokens)))
            await response.write(b"data: [DONE]\n\n")
        except JobFailedError as error:
            await _event(response, RequestError(error.message, status=503, kind="server_error").document())
        except ConnectionError:
            self.counters.cancelled += 1
        return response


class _Answer:
    """One answer as it grows, with its times."""

    def __init__(self, counters: Counters, ask: Ask) -> None:
        self.ask = ask
        self.found = Collected()
        self._counters = counters
        self._began = time.monotonic()
        self._first = True

    def add(self, piece: Piece) -> None:
        if piece.tokens and self._first:
            self._first = False
            self._counters.first_token.add(time.monotonic() - self._began)
        self.found.add(piece)
        if piece is not RESTART and piece.finish is not None:
            self._counters.whole.add(time.monotonic() - self._began)

    def close(self) -> int:
        """Count its tokens; how many it has."""
        self._counters.prompt_tokens += len(self.ask.order.tokens)
        self._counters.completion_tokens += len(self.found.tokens)
        return len(self.found.tokens)


async def _body(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON") from None


async def _event(response: web.StreamResponse, document: dict[str, Any]) -> None:
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    await response.write(f"data: {text}\n\n".encode())
