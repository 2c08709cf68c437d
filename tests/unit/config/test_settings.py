"""Settings of the tool: who wins, where a value came from, and what a start costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmctl.controller.config.settings import load_settings
from llmctl.errors import ConfigError


@pytest.fixture
def places(tmp_path: Path) -> tuple[dict[str, str], Path, Path]:
    user = tmp_path / "home/.config/llmctl/config.yaml"
    user.parent.mkdir(parents=True)
    (tmp_path / "work").mkdir()
    return {"HOME": str(tmp_path / "home")}, tmp_path / "work", user


def test_flag_beats_environment_beats_project_beats_user(
    places: tuple[dict[str, str], Path, Path],
) -> None:
    """Each source wins over those below it, and each value says where it came from."""
    env, cwd, user = places

    def pool_and_origin(**flags: str) -> tuple[str | None, str]:
        settings = load_settings(flags, environ=env, cwd=cwd)
        return settings.pool, settings.origins["pool"]

    assert pool_and_origin() == (None, "default")
    user.write_text("pool: user\n")
    assert pool_and_origin() == ("user", f"{user}:1")
    (cwd / "llmctl.yaml").write_text("version: 1\npool: project\n")
    assert pool_and_origin() == ("project", f"{cwd}/llmctl.yaml:2")
    env["LLMCTL_POOL"] = "env"
    assert pool_and_origin() == ("env", "LLMCTL_POOL")
    assert pool_and_origin(pool="flag") == ("flag", "--pool")


def test_paths_in_a_file_are_relative_to_it(places: tuple[dict[str, str], Path, Path]) -> None:
    """`hosts: cluster.yaml` in a project file is the one beside it; `~` is the home."""
    env, cwd, _user = places
    (cwd / "llmctl.yaml").write_text("hosts: cluster.yaml\nstate_dir: /var/tmp/x\n")
    settings = load_settings(environ=env, cwd=cwd)
    assert settings.hosts == str(cwd / "cluster.yaml")
    assert settings.state_dir == "/var/tmp/x"


def test_the_state_folder_follows_xdg(places: tuple[dict[str, str], Path, Path]) -> None:
    """The ledger's usual place is below XDG_STATE_HOME, else ~/.local/state; relative values don't count."""
    env, cwd, _user = places
    default = env["HOME"] + "/.local/state/llmctl"
    assert load_settings(environ=env, cwd=cwd).state_dir == default
    assert load_settings(environ={**env, "XDG_STATE_HOME": "rel"}, cwd=cwd).state_dir == default
    assert load_settings(environ={**env, "XDG_STATE_HOME": "/s"}, cwd=cwd).state_dir == "/s/llmctl"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LLMCTL_OUTPUT", "yaml", "LLMCTL_OUTPUT must be text or json, found 'yaml'"),
        ("LLMCTL_CONNECT_TIMEOUT_S", "soon", "must be a number of seconds"),
        ("LLMCTL_CONNECT_TIMEOUT_S", "nan", "must be a number of seconds"),
        ("LLMCTL_CONNECT_TIMEOUT_S", "0", "greater than 0"),
    ],
)
def test_a_wrong_variable_is_named(
    places: tuple[dict[str, str], Path, Path], name: str, value: str, expected: str
) -> None:
    """A value from the environment is judged like one from a file, and the variable is named."""
    env, cwd, _user = places
    with pytest.raises(ConfigError, match=expected):
        load_settings(environ={**env, name: value}, cwd=cwd)


def test_a_wrong_key_in_a_settings_file(places: tuple[dict[str, str], Path, Path]) -> None:
    """A typo in a settings file is told like one in a job."""
    env, cwd, _user = places
    (cwd / "llmctl.yaml").write_text("otput: json\n")
    with pytest.raises(ConfigError, match=r"llmctl.yaml:1: unknown key `otput`.*did you mean `output`"):
        load_settings(environ=env, cwd=cwd)


def test_no_color_is_honoured(places: tuple[dict[str, str], Path, Path]) -> None:
    """NO_COLOR turns colour off unless llmctl's own variable says otherwise."""
    env, cwd, _user = places
    assert load_settings(environ={**env, "NO_COLOR": "1"}, cwd=cwd).color == "never"
    both = {**env, "NO_COLOR": "1", "LLMCTL_COLOR": "always"}
    assert load_settings(environ=both, cwd=cwd).color == "always"


def test_a_start_without_files_stays_light(tmp_path: Path) -> None:
    """Settings, the search for the inventory and the ledger import neither pydantic nor YAML."""
    code = (
        "import sys; from pathlib import Path\n"
        "from llmctl.controller.config.settings import load_settings\n"
        "from llmctl.controller.config import inventory\n"
        "from llmctl.controller.ledger.store import Ledger\n"
        f"load_settings(environ={{'HOME': {str(tmp_path)!r}}}, cwd=Path({str(tmp_path)!r}))\n"
        f"Ledger({str(tmp_path)!r}, warn=print).close()\n"
        "heavy = {'pydantic', 'yaml', 'typer', 'rich', 'paramiko', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
