"""Bodies of S3 requests on connections that are slow but alive."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import urllib3

from llmctl.storage.drivers import s3bulk

BODY = 24 << 20
"""More than the kernel takes in at once."""

CONNECT_S = 0.3
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def slow() -> Iterator[str]:
    """A server that looks at nobody for longer than CONNECT_S; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                for _ in range(2):  # two requests on one connection
                    time.sleep(4 * CONNECT_S)
                    _take(client)
                    client.sendall(ANSWER)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x"
        thread.join(10)


def _take(client: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += client.recv(1)
    left = BODY
    while left and (piece := client.recv(min(left, 1 << 20))):
        left -= len(piece)


def test_a_body_has_more_time_than_a_connect(slow: str) -> None:
    """A store that takes it slowly is waited for, on a new connection as on one that was used before."""
    pool = s3bulk._pool(-1, "", None)
    for _ in range(2):
        pieces = (bytes(1 << 20) for _ in range(BODY >> 20))
        answer = pool.urlopen(
            "PUT",
            slow,
            body=pieces,
            headers={"Content-Length": str(BODY)},
            timeout=urllib3.Timeout(connect=CONNECT_S, read=60.0),
            retries=False,
        )
        assert answer.status == 200
