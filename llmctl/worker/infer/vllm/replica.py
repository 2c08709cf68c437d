"""`python -m llmctl.worker.infer.vllm.replica SPEC.json`: one host's part of a replica that vLLM computes.

To the front it is what the builtin engine's rank 0 is: the same door, the same orders, the same ready file.
On a replica's further hosts it only keeps vLLM's part there. It lives and dies with its vLLM.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmctl.errors import LlmctlError
from llmctl.wire.codec import loads
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.infer import ReplicaReady, ReplicaSpec
from llmctl.worker.infer.readiness import announce, token_of
from llmctl.worker.infer.server import Door
from llmctl.worker.infer.vllm.arguments import serve_arguments, serve_environment
from llmctl.worker.infer.vllm.child import Child
from llmctl.worker.infer.vllm.desk import Desk
from llmctl.worker.infer.vllm.source import VllmFolder, check_length, vllm_folder
from llmctl.worker.process import HOPELESS
from llmctl.worker.stop import StopSignal

SOCKET = ".sock"
FOLLOW_S = 0.2
FIRST_ANSWER_S = 120.0
"""How long the first real request may take: kernels are compiled for it."""


def main(arguments: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> int:
    """The process: 0 after a drain; an error is one line on stderr, and 93 where a new start can't help."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 1:
        sys.stderr.write("usage: python -m llmctl.worker.infer.vllm.replica SPEC.json\n")
        return ExitCode.USAGE
    stop = StopSignal()
    stop.install()
    try:
        run(loads(ReplicaSpec, Path(given[0]).read_bytes()), env, stop)
    except LlmctlError as error:
        sys.stderr.write(f"error: {error.line()}\n")
        if error.hint:
            sys.stderr.write(f"  {error.hint}\n")
        sys.stderr.flush()
        return ExitCode.NO_RETRY if isinstance(error, HOPELESS) else ExitCode.INTERNAL
    return ExitCode.OK


def run(spec: ReplicaSpec, env: Mapping[str, str], stop: StopSignal) -> None:
    """Be this host's part until there is nothing more to do.

    Raises:
        LlmctlError: vLLM can't be started on that model, or has ended.
    """
    started = time.monotonic()
    folder = vllm_folder(spec.model)
    check_length(folder, spec.max_length)
    # A socket's path may have 107 bytes, so it is named from here; vLLM is started here, too.
    os.chdir(Path(spec.ready_file).parent)
    path = Path(spec.ready_file).stem + SOCKET
    master = env.get("MASTER_ADDR", "127.0.0.1"), int(env.get("MASTER_PORT", "0"))
    argv = serve_arguments(spec, folder, sys.executable, path, master)
    sys.stdout.write(f"{spec.name}: {' '.join(argv)}\n")
    sys.stdout.flush()
    child = Child(argv, serve_environment(spec, env), None if spec.node else path)
    try:
        if spec.node:
            _follow(child, stop)
        elif child.wait_ready(spec.start_s, lambda: stop.asked):
            _lead(spec, folder, child, env, stop, started)
    finally:
        child.end()


def _follow(child: Child, stop: StopSignal) -> None:
    while not stop.asked:
        child.check()
        time.sleep(FOLLOW_S)


def _lead(
    spec: ReplicaSpec,
    folder: VllmFolder,
    child: Child,
    env: Mapping[str, str],
    stop: StopSignal,
    started: float,
) -> None:
    """Prove that it answers, listen, say so, serve."""
    child.prove(FIRST_ANSWER_S)
    door = Door(spec.listen, spec.port, token_of(env))
    ready = ReplicaReady(
        name=spec.name,
        host=spec.listen,
        port=door.port,
        pid=os.getpid(),
        vocab_size=folder.vocab_size,
        parameters=0,
        max_batch=spec.max_batch,
        max_length=spec.max_length,
        dtype=spec.dtype,
        kernels="vllm",
        load_s=time.monotonic() - started,
    )
    door.open()
    announce(Path(spec.ready_file), ready)
    told = f"{ready.name}: {ready.dtype} by vLLM, ready in {ready.load_s:.1f} s"
    sys.stdout.write(f"{told}; listening on {ready.host}:{ready.port}\n")
    sys.stdout.flush()
    Desk(spec, folder.vocab_size, child, door, stop).run()


if __name__ == "__main__":
    sys.exit(main())
