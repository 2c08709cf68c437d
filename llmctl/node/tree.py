"""Putting code in place: the agent archive unpacked, and the run's own copy of the pushed tree."""

from __future__ import annotations

import hashlib
import marshal
import os
import py_compile
import shutil
import zipfile

from llmctl.errors import IntegrityError, ProvisionError

_PYC_HEADER = 16
"""Bytes before the code in a .pyc, PEP 552."""


def unpack_archive(archive: str, folder: str, expected_sha256: str) -> None:
    """Unpack the agent archive to `folder`, the workers' PYTHONPATH; one that is there stays.

    Raises:
        IntegrityError: the archive's bytes are not what its name says.
        ProvisionError: there is no archive, or no room for what is in it.
    """
    if os.path.isdir(folder):
        return
    beside = f"{folder}.{os.getpid()}"
    try:
        with open(archive, "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() != expected_sha256:
                raise IntegrityError(f"agent archive {archive} is damaged", hint="push it again")
            with zipfile.ZipFile(file) as archived:
                archived.extractall(beside)
            _compile(beside)
        _rename_into_place(beside, folder)
    except FileNotFoundError:
        raise ProvisionError(f"no agent archive {archive}", hint="push it before `start`") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _compile(folder: str) -> None:
    """All of it now and looked at: left to be compiled when it is first used, on a disk that is full by then,
    Python leaves half a file in its cache (write() takes less than it was given, and nobody asks), and can't
    import that module ever again."""
    for root, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".py"):
                cached = py_compile.compile(os.path.join(root, name), doraise=True)
                _require_whole(str(cached))


def _require_whole(cached: str) -> None:
    with open(cached, "rb") as file:
        file.seek(_PYC_HEADER)
        try:
            marshal.load(file)  # noqa: S302 - our own, written a moment ago
        except (EOFError, ValueError):
            raise ProvisionError("no room for the agent's files", hint="free some space there") from None


def copy_tree(source: str, target: str) -> None:
    """A real, writable copy of the folder `source` at `target`, visible only when whole.

    Raises:
        OSError: with a message for people: no such tree, no space left.
    """
    if not os.path.isdir(source):
        raise OSError(f"no code tree {source}")
    beside = partial_copy(target)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _copy(source, beside)
        os.rename(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def partial_copy(target: str) -> str:
    """Where a copy grows until it is whole."""
    return target + ".part"


def _copy(source: str, target: str) -> None:
    """By cp where it knows how (fast, shares blocks where the file system can), else by Python."""
    copied = _run(("cp", "-a", "--reflink=auto", source, target)) and _run(("chmod", "-R", "u+w", target))
    if copied:
        return
    shutil.rmtree(target, ignore_errors=True)
    try:
        shutil.copytree(source, target, symlinks=True)
    except shutil.Error as error:
        raise OSError("; ".join(sorted({str(reason) for _, _, reason in error.args[0]}))) from None


def _run(command: tuple[str, ...]) -> bool:
    """Whether `command` is there and succeeds; quiet, because Python's try says why it fails."""
    quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    try:
        pid = os.posix_spawnp(command[0], command, os.environ, file_actions=quiet)
    except OSError:
        return False
    _, status = os.waitpid(pid, 0)
    return status == 0


def _rename_into_place(beside: str, folder: str) -> None:
    try:
        os.rename(beside, folder)
    except OSError:
        if not os.path.isdir(folder):  # else another start was faster with the same content
            raise
