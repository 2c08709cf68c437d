"""A start of `llmctl` imports nothing heavy before it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("argv", [["--help"], ["status"], ["train", "--help"], ["config", "validate"]])
def test_no_heavy_import(argv: list[str], tmp_path: Path) -> None:
    """Neither torch nor paramiko nor fsspec for help, for the ledger's runs, or for checking files."""
    (tmp_path / "hosts.yaml").write_text("version: 1\npools: {main: {hosts: [{name: a, addr: local}]}}\n")
    env = {**os.environ, "HOME": str(tmp_path), "LLMCTL_STATE_DIR": str(tmp_path / "state")}
    if argv == ["status"]:
        (tmp_path / "hosts.yaml").unlink()
    command = [sys.executable, "-X", "importtime", "-m", "llmctl", *argv]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    names = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not names & {"torch", "paramiko", "fsspec", "numpy"}
