"""The agent's archive: same bytes every time, standard library only, and at home on the oldest Python."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llmctl.controller.backends.archive import build
from tests.integration.agent_host import old_python


def test_the_archive_is_the_same_bytes_every_time() -> None:
    """Another process, with another hash seed, builds the same archive, so the same hash."""
    code = "from llmctl.controller.backends.archive import build; print(build().hash)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    build.cache_clear()  # sources may have been edited since an earlier test of this process
    assert done.stdout.decode().strip() == build().hash


def test_the_archive_holds_agent_workers_and_nothing_of_the_controller() -> None:
    """It carries wire, node, storage and worker as sources; no compiled files, no controller."""
    names = zipfile.ZipFile(io.BytesIO(build().data)).namelist()
    assert {"__main__.py", "llmctl/errors.py", "llmctl/node/main.py", "llmctl/wire/codec.py"} <= set(names)
    assert {name.split("/")[1] for name in names if "/" in name} == {
        "__init__.py",
        "errors.py",
        "node",
        "storage",
        "wire",
        "worker",
    }
    assert all(name.endswith((".py", ".cpp")) for name in names)


def test_agent_and_wire_compile_under_the_oldest_python(tmp_path: Path) -> None:
    """Python 3.9 reads every file that runs on a host before the job's own interpreter does."""
    zipfile.ZipFile(io.BytesIO(build().data)).extractall(tmp_path)
    parts = [str(tmp_path / "llmctl" / name) for name in ("node", "wire", "errors.py")]
    done = subprocess.run(
        [old_python(), "-m", "compileall", "-q", *parts], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize("python", ["this", "3.9"])
def test_every_node_module_imports_from_the_archive_alone(tmp_path: Path, python: str) -> None:
    """Without site-packages every module of the agent imports: it needs the standard library only."""
    pyz = tmp_path / "agent.pyz"
    pyz.write_bytes(build().data)
    names = zipfile.ZipFile(pyz).namelist()
    modules = [
        name[:-3].replace("/", ".") for name in names if name.startswith(("llmctl/node/", "llmctl/wire/"))
    ]
    code = f"import sys; sys.path.insert(0, {str(pyz)!r})\n" + "".join(
        f"import {name.removesuffix('.__init__')}\n" for name in modules
    )
    interpreter = sys.executable if python == "this" else old_python()
    done = subprocess.run([interpreter, "-I", "-S", "-c", code], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


def test_the_shim_imports_little_before_its_rank() -> None:
    """Until the rank runs the shim pays for no dataclasses, json, re or subprocess."""
    code = (
        "import sys, llmctl.node.main, llmctl.node.rank, llmctl.node.kernel, llmctl.node.atomic\n"
        "heavy = ('dataclasses', 'json', 're', 'subprocess', 'typing')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {root!r}); " + code]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert done.stdout.decode().strip() == "[]"
