"""What a replica and its front must have in common before the first order, whatever engine computes in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmctl.errors import ConfigError
from llmctl.wire.codec import dumps
from llmctl.wire.infer import TOKEN, ReplicaReady


def token_of(env: Mapping[str, str]) -> str:
    """The secret by which an inference's processes know each other. Raises ConfigError: there is none."""
    token = env.get(TOKEN, "")
    if not token:
        raise ConfigError(f"no {TOKEN} in the environment", stage="replica")
    return token


def announce(path: Path, ready: ReplicaReady) -> None:
    """Written beside and renamed: who sees the file sees it whole."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(dumps(ready))
    beside.replace(path)
