"""The `vllm serve` of this host as a process: started, found ready, watched and ended.

It writes into the replica's own log, and stays in the replica's process group: whatever ends that group ends
it and its workers, even where this process was killed.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from llmctl.errors import DeadlineError, JobFailedError

STAGE = "vllm"
PATH = "/v1/completions"
POLL_S = 0.2
ASK_S = 10.0
"""How long one look at its health may take."""
END_S = 10.0


class Channel(HTTPConnection):
    """HTTP over a Unix socket: the folder that it lies in says who may."""

    def __init__(self, path: str, *, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(self.timeout)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        self.sock = sock


class Child:
    """One running server.

    Args:
        argv: its command line.
        path: the socket that it makes; None: it is a part that serves nobody.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], path: str | None) -> None:
        self._path = path
        self.clear()  # whoever had this name before is gone
        self._process = subprocess.Popen(argv, env=dict(env), stdin=subprocess.DEVNULL)

    def clear(self) -> None:
        """Nothing is left of the socket."""
        if self._path is not None:
            Path(self._path).unlink(missing_ok=True)

    def check(self) -> None:
        """Raises JobFailedError where it has ended."""
        code = self._process.poll()
        if code is not None:
            raise JobFailedError(f"vLLM ended with {code}; its own words stand above", stage=STAGE)

    def wait_ready(self, seconds: float, stopped: Callable[[], bool]) -> bool:
        """Until it answers; False where a stop came first.

        Raises:
            JobFailedError: it has ended. DeadlineError: it takes too long.
        """
        until = time.monotonic() + seconds
        while not self.healthy():
            self.check()
            if stopped():
                return False
            if time.monotonic() > until:
                raise DeadlineError(f"vLLM does not answer after {seconds:g} s", stage=STAGE)
            time.sleep(POLL_S)
        return True

    def healthy(self) -> bool:
        """Whether it says so itself."""
        connection = self._channel(ASK_S)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def prove(self, seconds: float) -> None:
        """One real request, one token: an open port proves nothing.

        Raises:
            JobFailedError: it is not answered; says what came instead.
        """
        connection = self._channel(seconds)
        try:
            response = self.ask(connection, {"prompt": [0], "max_tokens": 1, "temperature": 0})
            said = response.read()
        except (OSError, HTTPException) as error:
            raise JobFailedError(f"vLLM does not answer a request: {error!r}", stage=STAGE) from None
        finally:
            connection.close()
        if response.status != 200:
            text = said.decode(errors="replace")[:300]
            raise JobFailedError(f"vLLM answers a request with {response.status}: {text}", stage=STAGE)

    def _channel(self, timeout: float | None) -> Channel:
        return Channel(self._path or "", timeout=timeout)

    def connection(self) -> Channel:
        """For one request. It may be silent for as long as others are before it: the front says what is too
        long, and ends this replica then."""
        return self._channel(None)

    def ask(self, connection: HTTPConnection, document: Mapping[str, Any]) -> HTTPResponse:
        """Send one request. Raises OSError or HTTPException where it is gone."""
        connection.request("POST", PATH, json.dumps(document), {"Content-Type": "application/json"})
        return connection.getresponse()

    def end(self) -> None:
        """Let it go, then make it go."""
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_S)
        self.clear()
