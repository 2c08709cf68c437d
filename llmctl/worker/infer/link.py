"""The wire between the front and a host's program: JSON lines over one TCP connection, both ends proven.

Each end shows that it has the run's token without sending it: it hashes the other's random challenge with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
from typing import Any

from llmctl.errors import HostUnreachableError, IntegrityError
from llmctl.worker.infer.deadline import bounded

LINE_LIMIT = 8 << 20
"""Bytes of one message at most."""
HANDSHAKE_S = 10.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0


class Link:
    """One proven connection. Sending never waits for the peer for longer than the socket's buffers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, message: dict[str, Any]) -> None:
        """Queue one message; a lost connection shows at the next `receive`."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def drain(self) -> None:
        """Wait until what was sent has left, or the connection is lost."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None when the connection has ended, or what came is no message."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):
            return None
        return _message(line)

    def close(self) -> None:
        self._writer.close()

    async def __aenter__(self) -> Link:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def accept(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str
) -> tuple[Link, dict[str, Any]] | None:
    """The front's side: (link, the peer's hello), or None for a stranger, whose connection is closed."""
    link = Link(reader, writer)
    try:
        hello = await bounded(_challenge(link, token), HANDSHAKE_S)
    except (asyncio.TimeoutError, IntegrityError):
        link.close()
        return None
    return link, hello


async def _challenge(link: Link, token: str) -> dict[str, Any]:
    mine = secrets.token_hex(16)
    link.send({"challenge": mine})
    hello = await _expect(link)
    body = json.dumps(hello.get("hello"), sort_keys=True)
    if not _same(hello.get("proof"), _proof(token, "host", mine, body)):
        raise IntegrityError("the peer does not know the token")
    link.send({"proof": _proof(token, "front", str(hello.get("challenge")), body)})
    await link.drain()
    return dict(hello["hello"])


async def dial(address: str, port: int, token: str, hello: dict[str, Any], *, deadline_s: float) -> Link:
    """The host's side: connect, prove, and check the front; tried again until the deadline.

    Raises:
        HostUnreachableError: nobody answers there, or somebody who does not know the token.
    """
    clock = asyncio.get_running_loop().time
    until, pause, why = clock() + deadline_s, _PAUSE_S, "no answer"
    while True:
        try:
            return await bounded(_dial(address, port, token, hello), HANDSHAKE_S)
        except asyncio.TimeoutError:
            why = "no answer"
        except (OSError, IntegrityError) as error:
            why = str(error)
        if clock() + pause > until:
            raise HostUnreachableError(
                f"no front at {address}:{port} within {deadline_s:g} s: {why}", stage="infer"
            )
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)


async def _dial(address: str, port: int, token: str, hello: dict[str, Any]) -> Link:
    reader, writer = await asyncio.open_connection(address, port, limit=LINE_LIMIT)
    link = Link(reader, writer)
    try:
        theirs = await _expect(link)
        mine, body = secrets.token_hex(16), json.dumps(hello, sort_keys=True)
        proof = _proof(token, "host", str(theirs.get("challenge")), body)
        link.send({"hello": hello, "challenge": mine, "proof": proof})
        answer = await _expect(link)
    except BaseException:
        link.close()
        raise
    if not _same(answer.get("proof"), _proof(token, "front", mine, body)):
        link.close()
        raise IntegrityError("it does not know the token")
    return link


async def _expect(link: Link) -> dict[str, Any]:
    message = await link.receive()
    if message is None:
        raise IntegrityError("the connection ended in the handshake")
    return message


def _message(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _proof(token: str, side: str, challenge: str, body: str) -> str:
    return hmac.new(token.encode(), f"{side}\n{challenge}\n{body}".encode(), "sha256").hexdigest()


def _same(given: object, wanted: str) -> bool:
    return isinstance(given, str) and hmac.compare_digest(given.encode(), wanted.encode())
