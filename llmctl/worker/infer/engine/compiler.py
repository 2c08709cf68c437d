"""native.cpp compiled on this host, for this host's processor, once: the library is kept under its hash.

A host without a compiler works, too: the engine then takes torch's own operations.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from llmctl.errors import PreflightError
from llmctl.wire.environment import CACHE_DIR

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-shared")
COMPILE_S = 300.0
_I64, _PTR = ctypes.c_int64, ctypes.c_void_p


class Sizes(ctypes.Structure):
    """`Sizes` in native.cpp."""

    _fields_ = (
        *((name, _I64) for name in ("layers", "dim", "heads", "kv_heads", "head_dim", "ffn")),
        *((name, _I64) for name in ("slots", "length", "window", "max_rows", "threads")),
        ("eps", ctypes.c_double),
    )


_FUNCTIONS = {
    "stage_new": (_PTR, (ctypes.POINTER(Sizes), _I64, _PTR, _PTR)),
    "stage_free": (None, (_PTR,)),
    "stage_matrix": (None, (_PTR, _I64, _I64, _PTR, _I64, _I64)),
    "stage_vector": (None, (_PTR, _I64, _I64, _PTR, _I64)),
    "stage_embed": (None, (_PTR, _PTR, _I64, _I64, _PTR)),
    "stage_layers": (None, (_PTR, _PTR, _I64, _PTR, _I64, _I64, _I64, _PTR)),
    "stage_logits": (None, (_PTR, _PTR, _I64, _PTR)),
}


@cache
def library() -> ctypes.CDLL:
    """The compiled kernels. torch must be imported before: its threads are used, not others beside them.

    Raises:
        PreflightError: no compiler here, or it fails; says what it said.
    """
    made = ctypes.CDLL(str(built(os.environ)))
    for name, (returns, takes) in _FUNCTIONS.items():
        function = getattr(made, name)
        function.restype, function.argtypes = returns, takes
    return made


def built(env: Mapping[str, str]) -> Path:
    """The library's file, compiled where it is not there yet. Raises PreflightError."""
    compiler = shutil.which(env.get("CXX") or "g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        raise PreflightError("no C++ compiler", hint="install g++, or set kernels: torch", stage="kernels")
    source = SOURCE.read_bytes()
    told = "\n".join((compiler, *FLAGS, platform.machine(), _processor()))
    name = hashlib.sha256(source + told.encode()).hexdigest()[:32]
    folder = _folder(env)
    path = folder / f"{name}.so"
    if not path.exists():
        _compile(compiler, folder, path)
    return path


def _folder(env: Mapping[str, str]) -> Path:
    """Private to the user: what lies there is loaded as code."""
    base = env.get(CACHE_DIR) or env.get("XDG_CACHE_HOME")
    folder = Path(base) if base else Path.home() / ".cache" / "llmctl"
    folder = folder / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    owner = folder.stat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o022:
        raise PreflightError(f"{folder} can be written by others", hint="chmod 700 it", stage="kernels")
    return folder


def _processor() -> str:
    """What `-march=native` depends on: a home directory may be shared by hosts of different kinds."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _compile(compiler: str, folder: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
        made = Path(scratch) / "native.so"
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(made)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=COMPILE_S, check=False, errors="replace"
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PreflightError(f"{compiler} did not run: {error}", stage="kernels") from None
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
            raise PreflightError(
                f"{compiler} failed: {last}", hint="set kernels: torch to do without", stage="kernels"
            )
        made.replace(path)
