"""`llmctl infer serve`: an OpenAI-compatible endpoint over the hosts; `infer tunnel`: the way to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.infer.options import (
    DetachOption,
    DryRunOption,
    EnvOption,
    NameOption,
    SetOption,
    ShapeOption,
)
from llmctl.controller.cli.options import (
    HostsOption,
    JobOption,
    LimitOption,
    OutputOption,
    PoolOption,
    RunArgument,
    checked_output,
)

if TYPE_CHECKING:
    from llmctl.controller.cli.infer.launching import Launched
    from llmctl.controller.cli.session import Session
    from llmctl.controller.collect.locate import Located
    from llmctl.controller.config.types import RunConfig
    from llmctl.controller.transport.pool import Connections
    from llmctl.wire.serving import ServeSpec

SERVE_EPILOG = (
    "Examples:\n\n"
    "    llmctl infer serve -f job.yaml      (then: http://127.0.0.1:8000/v1, over an SSH tunnel)\n\n"
    "    llmctl infer serve -d && llmctl infer tunnel\n\n"
    "    llmctl infer serve --expose --api-key-file key.txt\n\n"
    "Ctrl-C closes the tunnel and detaches: the endpoint goes on; `llmctl stop` ends it."
)
TUNNEL_EPILOG = "Example:\n\n    llmctl infer tunnel demo-7f3a --port 9000"
DEFAULT_PORT = 8000
SHORTEST_KEY = 8

PortOption = Annotated[
    int, typer.Option("--port", min=0, max=65535, help="Port on this machine; 0: any free one.")
]


def register(app: typer.Typer) -> None:
    app.command("serve", epilog=SERVE_EPILOG)(serve)
    app.command("tunnel", epilog=TUNNEL_EPILOG)(tunnel)


def serve(
    file: JobOption = None,
    hosts: HostsOption = None,
    port: PortOption = DEFAULT_PORT,
    expose: Annotated[
        bool, typer.Option("--expose", help="Listen on the first host's own addresses; needs an API key.")
    ] = False,
    api_key_file: Annotated[
        str | None, typer.Option("--api-key-file", metavar="FILE", help="The key's file; -: from stdin.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="The variable that holds the key.")
    ] = None,
    shape: ShapeOption = None,
    name: NameOption = None,
    pool: PoolOption = None,
    limit: LimitOption = None,
    set_: SetOption = None,
    env: EnvOption = None,
    detach: DetachOption = False,
    dry_run: DryRunOption = False,
    output: OutputOption = None,
) -> None:
    """Serve the model by OpenAI's HTTP API: completions, chat completions, models, /health and /metrics.

    It listens on the first host's loopback; this command holds an SSH tunnel to it open. `status`, `logs` and
    `stop` work as for a training; a stop lets what is being answered finish.
    """
    from llmctl.controller.cli.infer.launching import configured, launch, overrides_of
    from llmctl.controller.cli.session import Session
    from llmctl.controller.plan.inference import Work

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        config = configured(session, file, overrides_of(shape, name, pool, limit, set_, env))
        key = _api_key(api_key_file, api_key_env)
        spec = _serve_spec(config, port, key, expose=expose)
        launched = launch(session, config, Work(serve=spec), dry_run=dry_run)
        code = 0 if launched is None else _follow(session, launched, port, detach=detach)
    finally:
        session.close()
    raise typer.Exit(code)


def tunnel(
    run: RunArgument = None,
    port: PortOption = DEFAULT_PORT,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Open the way to an endpoint that `infer serve` started, until Ctrl-C or the endpoint's end."""
    from llmctl.controller.cli.session import Session

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        located = session.locate(run)
        code = _hold(session, session.connect(located.hosts), located, port)
    finally:
        session.close()
    raise typer.Exit(code)


def _api_key(file: str | None, variable: str | None) -> str | None:
    """The key that clients must show. Raises ConfigError."""
    import os
    import sys

    from llmctl.errors import ConfigError

    if file and variable:
        raise ConfigError("--api-key-file and --api-key-env name two places; use one")
    if variable:
        key = os.environ.get(variable, "")
        where = f"${variable}"
    elif file:
        key = sys.stdin.readline() if file == "-" else Path(file).read_text()
        where = "stdin" if file == "-" else file
    else:
        return None
    key = key.strip()
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable():
        raise ConfigError(f"{where} holds no API key: {SHORTEST_KEY} or more printable ASCII characters")
    return key


def _serve_spec(config: RunConfig, port: int, key: str | None, *, expose: bool) -> ServeSpec:
    from llmctl.errors import ConfigError
    from llmctl.wire import environment
    from llmctl.wire.serving import ServeSpec

    if expose and key is None:
        raise ConfigError("--expose lets others in: it needs an API key", hint="--api-key-file FILE")
    if key is not None:
        config.secrets[environment.INFER_API_KEY] = key
    queue = config.job.infer.queue if config.job.infer else ServeSpec.queue
    direct = expose or config.hosts[0].is_local
    return ServeSpec(
        address="0.0.0.0" if expose else "127.0.0.1",  # noqa: S104 - asked for, and with a key
        port=port if direct else 0,
        needs_key=key is not None,
        queue=queue,
    )


def _follow(session: Session, launched: Launched, port: int, *, detach: bool) -> int:
    from llmctl.controller.collect.locate import Located

    run_id = launched.plan.run_id
    if not detach:
        located = Located(run_id=run_id, hosts=launched.config.hosts)
        return _hold(session, launched.connections, located, port)
    if session.json:
        session.screen.document("infer-serve", {"run_id": run_id, "state": "starting"})
    else:
        session.screen.result(run_id)
        session.screen.say(f"detached; {run_id} goes on.   {_hint(run_id)}")
    return 0


def _hint(run_id: str) -> str:
    return f"llmctl infer tunnel {run_id} · llmctl status · llmctl stop {run_id}"


def _hold(session: Session, connections: Connections, located: Located, port: int) -> int:
    """Follow the run with the tunnel open; the exit code is the run's verdict."""
    from llmctl.controller.cli.following import follow_to_end
    from llmctl.controller.cli.infer.endpoint import EndpointView
    from llmctl.controller.cli.verdict import show_verdict
    from llmctl.wire.exitcodes import ExitCode
    from llmctl.wire.records import FollowRequest

    display = EndpointView(session, connections, located, port)
    try:
        view = follow_to_end(session, connections, located, display, FollowRequest(), one_fate=False)
    except KeyboardInterrupt:
        if session.json:
            document = {"run_id": located.run_id, "exit_code": int(ExitCode.DETACHED)}
            session.screen.document("detached", document)
        session.screen.say(f"\ndetached; {located.run_id} goes on.   {_hint(located.run_id)}")
        return int(ExitCode.DETACHED)
    return show_verdict(session, view, kind="infer-serve")
