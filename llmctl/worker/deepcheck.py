"""The host's side of `hosts check --deep`: does what a run would do, for seconds, and says how fast it went.

    python -m llmctl.worker.deepcheck          with lines of JSON on stdin and stdout (wire/deep.py)

A thread of its own reads stdin: when that ends, the process does, whatever a collective is waiting for.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable

from llmctl.errors import LlmctlError
from llmctl.wire import codec
from llmctl.wire.deep import (
    MATMUL,
    READ,
    REDUCE,
    SERVE,
    TRIAL,
    WRITE,
    DeepHello,
    DeepReply,
    DeepRequest,
    DeepSetup,
)


def main() -> int:
    """Answer requests until the end of stdin."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    _say(out, DeepHello(pid=os.getpid()))
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    setup = codec.loads(DeepSetup, lines.get())
    os.environ.update(setup.env)
    _say(out, _ready(setup))
    while True:
        _say(out, answer(codec.loads(DeepRequest, lines.get())))


def answer(request: DeepRequest) -> DeepReply:
    """Do one thing; what goes wrong is an answer, too."""
    try:
        return _doers()[request.kind](request)
    except LlmctlError as error:
        return DeepReply(error=error.message, hint=error.hint or "")
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        return DeepReply(error=_one_line(error))


def _doers() -> dict[str, Callable[[DeepRequest], DeepReply]]:
    from llmctl.worker.deep import devices, stores

    return {
        MATMUL: devices.matmul,
        SERVE: devices.serve,
        REDUCE: devices.reduce,
        READ: stores.read,
        WRITE: stores.write,
        TRIAL: stores.trial,
    }


def _ready(setup: DeepSetup) -> DeepReply:
    if not setup.torch:
        return DeepReply()
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        return DeepReply(error=f"torch can't be imported: {_one_line(error)}")
    return DeepReply()


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason told'}"[:300]


def _listen(lines: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)  # the main thread may be inside a collective that nobody will ever join


def _say(out: object, value: object) -> None:
    out.write(codec.dumps(value) + "\n")  # type: ignore[attr-defined]
    out.flush()  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
