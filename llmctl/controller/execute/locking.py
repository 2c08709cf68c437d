"""Resolve packages on this machine for hosts of another kind, once, and fetch their files: pip does the work.

pip can be told for which Python and platform to choose files, but reads the conditions in requirements
(`; python_version < "3.11"`) for the Python that runs it. It is started through SHIM, which gives it the
target's answers, so that a lock is what the host itself would have resolved.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import urllib.parse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmctl.controller.config.requirements import Requirements, canonical
from llmctl.controller.plan.bootstrap import Target, index_of
from llmctl.errors import IntegrityError, ProvisionError
from llmctl.wire import codec
from llmctl.wire.environments import Blob, Package

RESOLVE_S = 900.0
FETCH_S = 3600.0
STAGE = "lock"

SHIM = r"""
import json, sys
marks, wheel = json.loads(sys.argv[1]), sys.argv[2]
if wheel: sys.path.insert(0, wheel)
from pip._vendor.packaging import markers
ours = markers.default_environment
markers.default_environment = lambda: {**ours(), **marks}
from pip._internal.cli.main import main
sys.argv = ["pip", *sys.argv[3:]]
sys.exit(main())
"""

OLDEST_GLIBC_MINOR = 5
LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


class Locker:
    """Locks and wheels of one controller; both are kept, so that a second bootstrap asks no index.

    Args:
        cache: a folder of ours.
        upgrade: resolve again, whatever was locked before.
    """

    def __init__(self, cache: Path, *, upgrade: bool = False) -> None:
        self._locks = cache / "locks"
        self._wheels = cache / "wheels"
        self._upgrade = upgrade

    def lock(self, wanted: Requirements, target: Target) -> tuple[Package, ...]:
        """Every package with its version and hash, sorted by name.

        Raises:
            ProvisionError: they can't be had together for this target; pip's own words.
        """
        file = self._locks / f"{_key(wanted, target)}.json"
        if not self._upgrade and (known := _read(file)) is not None:
            return known
        packages = _resolve(wanted, target)
        _write(file, packages)
        return packages

    def fetch(self, packages: Sequence[Package], target: Target) -> tuple[Package, ...]:
        """The same packages with file names and sizes; their wheels lie here afterwards.

        Raises:
            ProvisionError: a wheel can't be had.
        """
        missing = [package for package in packages if self._found(package) is None]
        if missing:
            self._download(missing, target)
        return tuple(self._with_file(package) for package in packages)

    def path(self, blob: Blob) -> Path:
        """Where the content of a wheel lies here."""
        return self._wheels / blob.sha256 / blob.name

    def pip(self) -> Blob:
        """pip's own wheel, for hosts: the one that this Python brings along, else from the index."""
        source = _bundled_pip()
        if source is None:
            with tempfile.TemporaryDirectory() as folder:
                _pip(["download", "--no-deps", "--only-binary=:all:", "-d", folder, "pip"], None, FETCH_S)
                return self._keep(next(Path(folder).glob("*.whl")))
        return self._keep(source)

    def download_one(self, name: str, target: Target) -> Blob:
        """The newest wheel of one package without its dependencies. Raises ProvisionError."""
        with tempfile.TemporaryDirectory() as folder:
            _pip(["download", "--no-deps", *_for(target), "-d", folder, name], target, FETCH_S)
            return self._keep(next(Path(folder).glob("*.whl")))

    def _download(self, packages: Sequence[Package], target: Target) -> None:
        self._wheels.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._wheels, prefix=".new-") as folder:
            lock = Path(folder, "requirements.lock")
            lock.write_text("".join(f"{p.name}=={p.version} {_hashes(p)}\n" for p in packages))
            argv = ["download", "--no-deps", "--require-hashes", "-r", str(lock), "-d", folder]
            _pip([*argv, *_for(target), *_index(target)], target, FETCH_S)
            for file in Path(folder).glob("*.whl"):
                self._keep(file)

    def _keep(self, file: Path) -> Blob:
        """Under its hash; copied beside and renamed."""
        data = file.read_bytes()
        blob = Blob(sha256=hashlib.sha256(data).hexdigest(), size=len(data), name=file.name)
        dest = self.path(blob)
        if not dest.is_file():
            dest.parent.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=dest.parent, prefix=".")
            with os.fdopen(handle, "wb") as out:
                out.write(data)
            Path(beside).replace(dest)
        return blob

    def _found(self, package: Package) -> Path | None:
        for sha in package.sha256:
            for file in (self._wheels / sha).glob("*.whl"):
                return file
        return None

    def _with_file(self, package: Package) -> Package:
        file = self._found(package)
        if file is None:
            raise ProvisionError(f"pip did not bring {package.name} {package.version}", stage=STAGE)
        size = file.stat().st_size
        return replace(package, file=file.name, size=size, sha256=(file.parent.name,))


def _resolve(wanted: Requirements, target: Target) -> tuple[Package, ...]:
    with tempfile.TemporaryDirectory() as folder:
        asked, report = Path(folder, "requirements.txt"), Path(folder, "report.json")
        asked.write_text("\n".join(wanted.lines) + "\n")
        argv = ["install", "--dry-run", "--quiet", "--ignore-installed", "--report", str(report)]
        argv += ["--target", str(Path(folder, "target")), *_for(target), *_index(target), "-r", str(asked)]
        _pip(argv, target, RESOLVE_S)
        found = json.loads(report.read_text())["install"]
    packages = tuple(sorted((_package(entry) for entry in found), key=lambda one: one.name))
    _check_build(packages, target)
    return packages


def _package(entry: dict[str, Any]) -> Package:
    """One entry of pip's report."""
    name, version = canonical(entry["metadata"]["name"]), entry["metadata"]["version"]
    archive = entry["download_info"].get("archive_info", {})
    sha = archive.get("hashes", {}).get("sha256") or archive.get("hash", "").removeprefix("sha256=")
    url = urllib.parse.urlsplit(entry["download_info"]["url"])
    path = Path(urllib.parse.unquote(url.path))
    if not sha and url.scheme == "file":
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
    if not sha:
        raise ProvisionError(f"{name} {version}: the index gives no hash of {path.name}", stage=STAGE)
    return Package(name=name, version=version, sha256=(sha,), file=path.name)


def _check_build(packages: Sequence[Package], target: Target) -> None:
    """An index that was not reached leaves pip with the usual build, without a word."""
    torch = next((one for one in packages if one.name == "torch"), None)
    if not target.build or torch is None or torch.version.endswith("+" + target.build):
        return
    raise ProvisionError(
        f"pip found torch {torch.version}, not its build `{target.build}` of {index_of(target.build)}",
        stage=STAGE,
        hint="can this machine reach it? env: {torch: default} takes the build of the usual index",
    )


def _for(target: Target) -> list[str]:
    """pip's words for the target: only wheels, for every platform tag that its glibc runs."""
    minor = int(target.glibc.split(".")[1])
    argv = ["--only-binary=:all:", "--implementation", "cp", "--python-version", target.python]
    for number in range(minor, OLDEST_GLIBC_MINOR - 1, -1):
        argv += ["--platform", f"manylinux_2_{number}_{target.machine}"]
        if number in LEGACY:
            argv += ["--platform", f"{LEGACY[number]}_{target.machine}"]
    return [*argv, "--platform", f"linux_{target.machine}"]


def _index(target: Target) -> list[str]:
    index = index_of(target.build)
    return ["--extra-index-url", index] if index else []


def _hashes(package: Package) -> str:
    return " ".join(f"--hash=sha256:{sha}" for sha in package.sha256)


def _marks(target: Target) -> dict[str, str]:
    """The answers to conditions in requirements."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{target.python}.0",
        "os_name": "posix",
        "platform_machine": target.machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{target.python}.0",
        "python_version": target.python,
        "sys_platform": "linux",
    }


def _pip(argv: Sequence[str], target: Target | None, deadline_s: float) -> None:
    marks = json.dumps(_marks(target) if target else {})
    wheel = "" if importlib.util.find_spec("pip") else str(_bundled_pip() or "")
    command = [sys.executable, "-c", SHIM, marks, wheel, *argv]
    command += ["--no-input", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=deadline_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ProvisionError(f"pip was not done within {deadline_s:.0f} s", stage=STAGE) from None
    if done.returncode:
        raise ProvisionError(
            f"pip on this machine: {_words(done.stderr)}", stage=STAGE, hint=_hint(done.stderr)
        )


def _words(stderr: bytes) -> str:
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it failed without a word"])[-1]


def _hint(stderr: bytes) -> str | None:
    if b"No module named 'pip'" in stderr:
        return f"{sys.executable} -m ensurepip, or run llmctl with a Python that has pip"
    if b"No matching distribution" in stderr:
        return "is there a wheel for that Python and platform? env: {python: '3.x'} names another Python"
    return None


def _bundled_pip() -> Path | None:
    """The wheel of pip that a Python carries for new environments; Debian keeps it elsewhere."""
    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR")]
    spec = importlib.util.find_spec("ensurepip")
    if spec is not None and spec.origin:
        folders.append(str(Path(spec.origin).with_name("_bundled")))
    found = [file for folder in folders if folder for file in Path(folder).glob("pip-*.whl")]
    return max(found, default=None)


def _key(wanted: Requirements, target: Target) -> str:
    text = "\n".join((wanted.key, target.words, str(index_of(target.build))))
    return hashlib.sha256(text.encode()).hexdigest()


def _read(file: Path) -> tuple[Package, ...] | None:
    """What was locked before; a file that can't be read is none."""
    try:
        document = json.loads(file.read_bytes())
        return tuple(codec.decode(Package, entry) for entry in document["packages"])
    except (OSError, ValueError, KeyError, TypeError, IntegrityError):
        return None


def _write(file: Path, packages: Sequence[Package]) -> None:
    """Best effort: without it the next bootstrap asks again."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=file.parent, prefix=".")
        with os.fdopen(handle, "w") as out:
            json.dump({"packages": codec.encode(list(packages))}, out)
        Path(beside).replace(file)
