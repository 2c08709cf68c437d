"""`llmctl ckpt export | import | reshard` as a person calls them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llmctl.controller.cli import ckpt_convert
from llmctl.errors import ConfigError, IntegrityError, NotFoundError, PreflightError
from tests.hf_kit import difference, loaded, tiny, tokens

pytestmark = pytest.mark.torch


@pytest.fixture
def group() -> typer.Typer:
    """The verbs in a group of their own."""
    app = typer.Typer()
    ckpt_convert.register(app)
    return app


def call(app: typer.Typer, *arguments: str | Path) -> str:
    """stdout of a call that must succeed; its own error is raised where it does not."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_in_and_out_by_the_command_line(
    group: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths mean the caller's folder; -o json prints one document; the model is the same."""
    theirs = tiny("llama", tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    call(group, "import", "hf", "ours")
    told = json.loads(call(group, "reshard", "ours", "again", "--files", "2", "-o", "json"))
    assert told["kind"] == "ckpt-reshard"
    assert len([name for name in told["files"] if name.endswith(".distcp")]) == 2
    call(group, "export", "again", "out", "--python", sys.executable)
    assert difference(loaded(tmp_path / "out"), theirs, tokens()) < 1e-4


def test_what_goes_wrong_there_is_told_here(group: typer.Typer, tmp_path: Path) -> None:
    """The other process's error is ours: its kind, its line and its hint."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    tiny("llama", tmp_path / "hf")
    with pytest.raises(NotFoundError, match=r"holds no config\.json") as caught:
        call(group, "export", tmp_path / "nothing", tmp_path / "out")
    assert caught.value.hint
    with pytest.raises(ConfigError, match="not empty"):
        call(group, "export", tmp_path / "hf", tmp_path / "taken")
    (tmp_path / "hf" / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(IntegrityError, match="not a safetensors file"):
        call(group, "import", tmp_path / "hf", tmp_path / "ours")


def test_a_python_without_torch_is_refused(group: typer.Typer, tmp_path: Path) -> None:
    """Not with a traceback of the import, but with what to do."""
    with pytest.raises(PreflightError, match="has no torch") as caught:
        call(group, "export", tmp_path, tmp_path / "out", "--python", "/bin/false")
    assert "--python" in (caught.value.hint or "")
