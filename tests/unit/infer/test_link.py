"""The wire between front and hosts: only who has the token gets through, on both sides."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmctl.errors import HostUnreachableError
from llmctl.worker.infer.link import Link, accept, dial
from llmctl.worker.infer.orders import AskPort, Bye, RankSlot, Start, message, parse


async def meet(front_token: str, host_token: str) -> list[Any]:
    """What the front took, and what came over the link; an error where the host got none."""
    met: list[Any] = []
    done = asyncio.Event()

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        known = await accept(reader, writer, front_token)
        if known is not None:
            met.append(known[1])
            met.append(await known[0].receive())
            known[0].close()
        done.set()

    server = await asyncio.start_server(welcome, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        try:
            link = await dial("127.0.0.1", port, host_token, {"node": 1}, deadline_s=0.0)
        except HostUnreachableError as error:
            met.append(error)
        else:
            async with link:
                await _talk(link)
        await asyncio.wait_for(done.wait(), 30)
    return met


async def _talk(link: Link) -> None:
    order = Start(replica=3, generation=2, ranks=(RankSlot(0, 1),), master_addr="::1", master_port=9)
    link.send(message(order))
    assert await link.receive() is None


def test_both_ends_with_the_token_talk() -> None:
    """The hello arrives, and messages survive the way."""
    hello, sent = asyncio.run(meet("secret", "secret"))
    assert hello == {"node": 1}
    assert parse(sent).ranks == (RankSlot(0, 1),)


@pytest.mark.parametrize(("front", "host"), [("secret", "other"), ("", "other"), ("secret", "")])
def test_a_stranger_gets_no_link(front: str, host: str) -> None:
    """Neither side takes the other; the token itself is never sent."""
    (error,) = asyncio.run(meet(front, host))
    assert isinstance(error, HostUnreachableError)


def test_every_message_comes_back_as_it_was() -> None:
    """Orders are told apart by their name alone."""
    for order in (AskPort(replica=1, generation=2), Bye(code=3)):
        assert parse(message(order)) == order
