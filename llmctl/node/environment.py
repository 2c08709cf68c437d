"""`environment`: make one environment, or find that it stands. Beside first, renamed when it was proven.

    <workdir>/env/<hash>/         bin/python, packages, ready.json
    <workdir>/env/.new-<hash>     while it is made; what a killed build leaves is removed by the next one
    <workdir>/env/.lock-<hash>    held while it is made: two bootstraps at once make it once

pip comes as a wheel with the request and runs from it, so neither a broken pip nor a missing ensurepip of the
host matters.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

from llmctl.errors import DeadlineError, IntegrityError, ProvisionError
from llmctl.node import atomic, wheels
from llmctl.node.scripts import readdress
from llmctl.wire import codec
from llmctl.wire.environments import READY, Blob, EnvReady, EnvReply, EnvRequest
from llmctl.wire.layout import HostLayout

_SMALL = 32 << 20
"""Bytes free below which a failure is put down to the disk."""

_CHECK = r"""
import importlib, importlib.metadata as m, re, sys
modules, wanted = sys.argv[1].split(), [text.split(" ") for text in sys.argv[2:]]
for name, version in wanted:
    try: found = m.version(name)
    except m.PackageNotFoundError: sys.exit(name + " was not installed")
    if found != version: sys.exit("%s %s was installed, not %s" % (name, found, version))
for name in modules:
    try: importlib.import_module(name)
    except Exception as error: sys.exit("import %s: %s: %s" % (name, type(error).__name__, error))
if "torch" in modules:
    torch = sys.modules["torch"]
    if float((torch.ones(2, 2) @ torch.ones(2, 2)).sum()) != 8.0: sys.exit("torch can't multiply")
"""


def environment(workdir: str, request: EnvRequest) -> EnvReply:
    """The environment stands when this returns.

    Raises:
        ProvisionError: it could not be made; the last words of what failed, and no trace of it is left.
        DeadlineError: another bootstrap makes it and does not come to an end.
    """
    host = HostLayout(os.path.expanduser(workdir))
    started = time.monotonic()
    os.makedirs(os.path.join(host.envs, "by"), mode=0o700, exist_ok=True)
    ready = _ready(host, request.hash)
    built = False
    if ready is None:
        with _locked(host, request) as lock:
            ready = _ready(host, request.hash)
            if ready is None:
                ready, built = _Maker(host, request, lock).make(), True
    _name(host, request)
    seconds = time.monotonic() - started
    return EnvReply(hash=ready.hash, python=ready.python, built=built, bytes=ready.bytes, seconds=seconds)


def _ready(host: HostLayout, env_hash: str) -> Optional[EnvReady]:
    """What stands; None where nothing does, or its base interpreter is gone."""
    folder = host.env(env_hash)
    text = atomic.read(os.path.join(folder, READY))
    if text is None or not os.access(os.path.join(folder, "bin", "python"), os.X_OK):
        return None
    try:
        return codec.loads(EnvReady, text)
    except IntegrityError:
        return None


@contextmanager
def _locked(host: HostLayout, request: EnvRequest) -> Iterator[int]:
    """One maker at a time. The lock is the kernel's: it ends with its processes, however they end.

    Those that are started to help get its file descriptor: a pip whose maker was killed still writes.
    """
    until = time.monotonic() + request.deadline_s
    path = os.path.join(host.envs, ".lock-" + request.hash)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _try_lock(fd):
            if time.monotonic() > until:
                raise DeadlineError(f"another bootstrap has not finished after {request.deadline_s:.0f} s")
            time.sleep(0.2)
        yield fd
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


class _Maker:
    """Makes one environment while it holds the lock."""

    def __init__(self, host: HostLayout, request: EnvRequest, lock: int) -> None:
        self._host = host
        self._request = request
        self._lock = lock
        self._beside = os.path.join(host.envs, ".new-" + request.hash)
        self._python = os.path.join(self._beside, "bin", "python")

    def make(self) -> EnvReady:
        final = self._host.env(self._request.hash)
        shutil.rmtree(self._beside, ignore_errors=True)
        try:
            pip = wheels.checked(self._host, self._request.pip)
            self._venv()
            self._install(pip)
            self._prove()
            readdress(self._beside, final)
            ready = self._ready(final)
            atomic.write(os.path.join(self._beside, READY), codec.dumps(ready), durable=True)
            _into_place(self._beside, final)
        except OSError as error:
            raise ProvisionError(
                f"{error.strerror or error}{_room(self._host)}", hint=_hint(error)
            ) from error
        finally:
            shutil.rmtree(self._beside, ignore_errors=True)
        return ready

    def _venv(self) -> None:
        """An empty virtual environment of the interpreter that runs this."""
        done = self._run([sys.executable, "-I", "-m", "venv", "--without-pip", self._beside], within=120.0)
        if done.returncode:
            hint = "install this Python's venv module (Debian: python3-venv), or set `python:` to another one"
            raise ProvisionError(f"no virtual environment: {_words(done)} ({sys.executable})", hint=hint)

    def _install(self, pip: str) -> None:
        request = self._request
        lock = os.path.join(self._beside, "requirements.lock")
        atomic.write(lock, "".join(_line(request)))
        argv = [self._python, "-I", os.path.join(pip, "pip"), "install", "--no-deps", "--require-hashes"]
        argv += ["-r", lock, "--no-input", "--no-cache-dir", "--disable-pip-version-check", "-q"]
        argv += ["--no-warn-script-location"]
        if request.offline:
            argv += ["--isolated", "--no-index", *self._found_links()]
        for index in request.indexes:
            argv += ["--extra-index-url", index]
        scratch = os.path.join(self._beside, "tmp")  # /tmp may be small, or on another disk
        os.mkdir(scratch)
        done = self._run(argv, within=request.deadline_s, tmp=scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        if done.returncode:
            raise ProvisionError(f"pip: {_words(done)}{_room(self._host)}", hint=_pip_hint(done, request))

    def _found_links(self) -> Iterator[str]:
        """Folders of the wheels that were sent, each checked."""
        for package in self._request.packages:
            blob = Blob(sha256=package.sha256[0], size=package.size, name=package.file)
            yield from ("--find-links", os.path.dirname(wheels.checked(self._host, blob)))

    def _prove(self) -> None:
        wanted = [f"{one.name} {one.version}" for one in self._request.packages]
        argv = [self._python, "-I", "-c", _CHECK, " ".join(self._request.verify), *wanted]
        done = self._run(argv, within=300.0)
        if done.returncode:
            raise ProvisionError(f"the new environment does not work: {_words(done)}")

    def _ready(self, final: str) -> EnvReady:
        request = self._request
        return EnvReady(
            hash=request.hash,
            request=request.request,
            python=os.path.join(final, "bin", "python"),
            base=os.path.realpath(self._python),
            version="{}.{}.{}".format(*sys.version_info[:3]),
            build=request.build,
            packages=tuple(f"{one.name} {one.version}" for one in request.packages),
            created=time.time(),
            bytes=_size(self._beside),
        )

    def _run(self, argv: list[str], *, within: float, tmp: str = "") -> subprocess.CompletedProcess[bytes]:
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONHOME", "PYTHONPATH")}
        if tmp:
            env["TMPDIR"] = tmp
        try:
            return subprocess.run(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=within,
                check=False,
                pass_fds=(self._lock,),
            )
        except subprocess.TimeoutExpired:
            raise ProvisionError(f"not done within {within:.0f} s: {os.path.basename(argv[0])}") from None


def _into_place(beside: str, final: str) -> None:
    """What is there under that name, if anything, is damaged: its interpreter is gone."""
    if os.path.isdir(final):
        doomed = beside + ".old"
        os.rename(final, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    os.rename(beside, final)


def _line(request: EnvRequest) -> Iterator[str]:
    for package in request.packages:
        hashes = " ".join(f"--hash=sha256:{sha}" for sha in package.sha256)
        yield f"{package.name}=={package.version} {hashes}\n"


def _words(done: subprocess.CompletedProcess[bytes]) -> str:
    """The line that says what went wrong: pip's first error, else the last line."""
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line[len("ERROR: ") :] for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or [f"exit {done.returncode}"])[0 if errors else -1]


def _pip_hint(done: subprocess.CompletedProcess[bytes], request: EnvRequest) -> Optional[str]:
    text = done.stderr.decode(errors="replace")
    if "No space left" in text:
        return "make room: llmctl hosts clean, or set `workdir:` to a larger disk"
    if not request.offline and ("NewConnectionError" in text or "No matching distribution" in text):
        return "does it reach a package index? without: llmctl hosts bootstrap --wheelhouse"
    return None


def _hint(error: OSError) -> Optional[str]:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room: llmctl hosts clean, or set `workdir:` to a larger disk"
    return None


def _room(host: HostLayout) -> str:
    try:
        free = shutil.disk_usage(host.workdir).free
    except OSError:
        return ""
    return f" ({free >> 20} MB free in {host.workdir})" if free < _SMALL else ""


def _name(host: HostLayout, request: EnvRequest) -> None:
    """`env/by/<request>` leads to it; replaced in one step, for a `train` may look at any time."""
    link = host.env_by(request.request)
    target = os.path.join("..", request.hash)
    try:
        if os.readlink(link) == target:
            return
    except OSError:
        pass
    beside = f"{link}.{os.getpid()}"
    atomic.remove(beside)
    os.symlink(target, beside)
    os.replace(beside, link)


def _size(folder: str) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        total += sum(os.lstat(os.path.join(root, name)).st_size for name in names)
    return total
