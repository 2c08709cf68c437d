"""The live view of a serving run, which opens the tunnel as soon as the run says where it answers."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from llmctl.controller.cli.session import Session
from llmctl.controller.collect.locate import Located
from llmctl.controller.transport.pool import Connections
from llmctl.controller.transport.tunnel import Tunnel
from llmctl.controller.ui.training import TrainingView
from llmctl.wire import metrics

ANY = "0.0.0.0"  # noqa: S104 - only compared with


class EndpointView(TrainingView):
    """A `Watcher`. Leaving it closes the tunnel."""

    def __init__(self, session: Session, connections: Connections, located: Located, port: int) -> None:
        """`port`: of this machine, for the tunnel."""
        names = [host.name for host in located.hosts]
        super().__init__(session.screen, total=None, logs=False, hosts=names, unit="request")
        self._session, self._connections, self._located = session, connections, located
        self._port = port
        self._tunnel: Tunnel | None = None

    def metric(self, host: str, line: dict[str, Any]) -> None:
        if line.get("kind") == metrics.ENDPOINT:
            self._open(host, line)
        else:
            super().metric(host, line)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, trace)
        if self._tunnel is not None:
            self._tunnel.close()

    def _open(self, host: str, line: dict[str, Any]) -> None:
        """Raises ConfigError where this machine's port is taken; the run goes on all the same."""
        if self._tunnel is not None:
            return
        entry = next(one for one in self._located.hosts if one.name == host)
        address, port = str(line["address"]), int(line["port"])
        if address == ANY:
            name = self._connections.hostname(host)
            where, how = f"{name}:{port}", f"open on {host}, with the API key"
        elif entry.is_local:
            where, how = f"{address}:{port}", "on this machine"
        else:
            self._tunnel = Tunnel(self._connections, host, address, port, listen=self._port)
            where, how = f"127.0.0.1:{self._tunnel.port}", f"tunnel to {host}"
        url = f"http://{where}/v1"
        screen = self._session.screen
        if screen.json_output:
            document = {"run_id": self._located.run_id, "url": url, "model": line.get("model")}
            screen.document("endpoint", document, one_line=True)
        screen.say(f"serving   {url}  ({how}; model {line.get('model')})")
