"""The node agent's verbs that make a host ready. They run before any environment does."""

from __future__ import annotations

from llmctl.controller.backends.agent import AgentClient
from llmctl.errors import ProvisionError, RemoteCommandError
from llmctl.wire import codec
from llmctl.wire.environments import EnvReply, EnvRequest, HaveReply, HaveRequest

MARGIN_S = 60.0


class Provisioner(AgentClient):
    """The agent of one host, asked to build; raises as AgentClient does, ProvisionError above all."""

    def environment(self, request: EnvRequest) -> EnvReply:
        """Build the environment, or find that it stands."""
        deadline_s = request.deadline_s + MARGIN_S
        try:
            return self._call(EnvReply, ["environment"], codec.dumps(request), deadline_s, "bootstrap")
        except RemoteCommandError as error:
            raise ProvisionError(
                error.message, host=error.host, stage=error.stage, hint="run it again: what is there is kept"
            ) from error

    def wheels(self, request: HaveRequest, *, deadline_s: float = 60.0) -> HaveReply:
        """Which of these files are missing there."""
        return self._call(HaveReply, ["wheels"], codec.dumps(request), deadline_s, "bootstrap")
