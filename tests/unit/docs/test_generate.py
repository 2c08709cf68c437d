"""The documentation says what the code does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
LINK = re.compile(r"\[[^\]]*\]\(([^)#:]+)(?:#[^)]*)?\)")


def generate(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "docs/generate.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)


def test_the_pages_are_fresh() -> None:
    """Nobody changed a model, an exit code or an option without `make docs`."""
    done = generate(ROOT, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_page_is_found_and_written_again(tmp_path: Path) -> None:
    """`--check` shows what is stale and exits with 1; without it the page is put right."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    page = tmp_path / "docs/reference/exit-codes.md"
    fresh = page.read_text()
    page.write_text(fresh.replace("| 130 |", "| 131 |"))
    done = generate(tmp_path, "--check")
    assert done.returncode == 1
    assert "-| 131 |" in done.stdout
    assert "+| 130 |" in done.stdout
    assert generate(tmp_path).returncode == 0
    assert page.read_text() == fresh


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page is a file or folder of this repository."""
    dead = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert dead == []
