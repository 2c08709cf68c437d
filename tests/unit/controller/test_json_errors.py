"""`-o json`: a failure is a document on stdout, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmctl.controller.cli.app import wants_json
from llmctl.wire.exitcodes import ExitCode


def llmctl(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(cwd), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "llmctl", *words]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_failure_is_one_document(tmp_path: Path) -> None:
    """stdout: what failed, why, what to do and the exit code; stderr: the line for people, as always."""
    done = llmctl("status", "-o", "json", "--hosts", "nowhere.yaml", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert document["kind"] == "error"
    assert document["exit_code"] == done.returncode == ExitCode.USAGE
    (told,) = document["errors"]
    assert "nowhere.yaml" in told["message"]
    assert told["message"] in done.stderr


def test_wrong_usage_is_a_document(tmp_path: Path) -> None:
    """What the parser of options refuses is told on stderr, and stdout still holds one document."""
    done = llmctl("status", "--nonsense", "-o", "json", cwd=tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert json.loads(done.stdout)["exit_code"] == ExitCode.USAGE
    assert "--nonsense" in done.stderr


def test_people_get_no_document(tmp_path: Path) -> None:
    """Without -o json stdout stays empty on a failure."""
    done = llmctl("status", "--hosts", "nowhere.yaml", cwd=tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["status", "-o", "json"], True),
        (["status", "--output=json"], True),
        (["status", "-ojson"], True),
        (["train", "-o", "text", "json"], False),
        (["train", "--", "x.py", "-o", "json"], False),
    ],
)
def test_who_asked_for_json(words: list[str], wanted: bool) -> None:
    """Only llmctl's own option counts, not one of the user's script."""
    assert wants_json(words) is wanted
