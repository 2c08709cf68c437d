"""Where the operator's own files lie, by the XDG rules. No other module joins these paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmctl.errors import ConfigError

APP = "llmctl"
USER_HOSTS = "hosts.yaml"
USER_CONFIG = "config.yaml"
PROJECT_CONFIG = "llmctl.yaml"


def expand(path_text: str | Path) -> Path:
    """The path with `~` or `~user` at its start replaced. Raises ConfigError where there is no such home."""
    try:
        return Path(path_text).expanduser()
    except RuntimeError:
        start = Path(path_text).parts[0]
        raise ConfigError(
            f"{path_text}: no home folder is known for {start}", hint="write the whole path"
        ) from None


def user_config_dir(env: Mapping[str, str]) -> Path:
    """`$XDG_CONFIG_HOME/llmctl`, else `~/.config/llmctl`."""
    return _xdg(env, "XDG_CONFIG_HOME", ".config")


def user_state_dir(env: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/llmctl`, else `~/.local/state/llmctl`."""
    return _xdg(env, "XDG_STATE_HOME", ".local/state")


def _xdg(env: Mapping[str, str], name: str, below_home: str) -> Path:
    """The standard asks to ignore a relative value."""
    chosen = env.get(name, "")
    if chosen.startswith("/"):
        return Path(chosen) / APP
    home = env.get("HOME")
    return (Path(home) if home else Path.home()) / below_home / APP
