"""What makes a host ready, as values: which Python, which build of torch, which steps. Pure.

(facts, what the job asks for) -> Choice per host -> with a lock: the steps that `--dry-run` prints and that
`execute.bootstrap` carries out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.controller.config.requirements import Requirements
from llmctl.controller.config.types import Host
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.probe.machine import FoundEnv
from llmctl.errors import ProvisionError
from llmctl.wire.environments import Package, env_hash
from llmctl.wire.layout import HostLayout

OLDEST = (3, 10)
NEWEST_TRIED = (3, 14)
"""Newer Pythons than this are taken only where a job names them: packages lag behind."""

DEFAULT_PYTHON = "3.12"
"""Installed where a host has no fit one and the job names none."""

DRIVER_BUILDS = ((580, "cu130"), (525, "cu128"))
"""Oldest driver -> newest torch build that it runs; minor versions of CUDA 12 share a driver."""

ROCM_BUILD = "rocm6.4"
TORCH_INDEX = "https://download.pytorch.org/whl/"
IMPORTED = {"torch": "torch", "numpy": "numpy", "fsspec": "fsspec", "tokenizers": "tokenizers"}
"""What is imported to prove an environment, where it was asked for."""

ROOM_FACTOR = 4
"""Unpacked, a wheel takes up to about three times its size; and it lies there itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What packages are locked for: hosts with one Target share a lock.

    Attributes:
        python: minor version. glibc: such as `2.36`. build: torch's; empty: no torch, or the index's own.
    """

    python: str
    machine: str
    glibc: str
    build: str = ""

    @property
    def platform(self) -> str:
        return f"{self.machine}-glibc"

    @property
    def words(self) -> str:
        """`python 3.12, x86_64, glibc 2.36, torch cu128`."""
        torch = f", torch {self.build}" if self.build else ""
        return f"python {self.python}, {self.machine}, glibc {self.glibc}{torch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one host is to become.

    Attributes:
        python: interpreter on the host that the environment is made of; None: one is installed first.
        stands: the environment that is there for this request already; then nothing is done.
        default: its `python3` does not do: this interpreter becomes llmctl's own on that host.
    """

    host: str
    target: Target
    python: str | None
    stands: FoundEnv | None = None
    default: bool = False
    why: str = ""


def choose(host: Host, facts: HostFacts, wanted: Requirements, *, anew: bool = False) -> Choice:
    """Which Python and which build of torch.

    Args:
        anew: what stands is no answer: it may be made of older packages.

    Raises:
        ProvisionError: this host can't be made ready; says what to do.
    """
    if facts.workdir_error:
        raise _refused(host, f"{facts.workdir}: {facts.workdir_error}", _set("workdir", host))
    build = torch_build(facts, wanted)
    stands = None if anew else standing(facts, wanted)
    if stands is not None and stands.build == build:
        python = ".".join(stands.python.split(".")[:2])
        target = _target(facts, python, build)
        return Choice(host=host.name, target=target, python=stands.path, stands=stands)
    path, version = _interpreter(facts, wanted)
    if not facts.more.glibc:
        raise _refused(
            host, "it has no glibc: packages are locked for glibc only", "env: {kind: system} in the job"
        )
    minor = ".".join(version.split(".")[:2])
    usual = facts.python is not None and _fit(facts.python.version, None)
    return Choice(
        host=host.name,
        target=_target(facts, minor, build),
        python=path,
        default=not usual and host.python == "python3",
        why="" if path else f"no Python {wanted.python or '3.10 or newer'} was found",
    )


def standing(facts: HostFacts, wanted: Requirements, env: str | None = None) -> FoundEnv | None:
    """The environment that is there for this request, where it can be used; with `env`: if it is that one."""
    for found in facts.more.envs:
        if found.request == wanted.key and found.usable and env in (None, found.hash):
            return found
    return None


def system_problem(host: Host, facts: HostFacts, wanted: Requirements) -> ProvisionError | None:
    """Why the host's own Python does not do for `env: {kind: system}`."""
    if facts.python is None:
        return _refused(host, f"python does not start: {facts.python_error}", _set("python", host))
    if wanted.python is not None and not _fit(facts.python.version, wanted.python):
        message = f"python is {facts.python.version}, the job wants {wanted.python}"
        return _refused(host, message, f"{_set('python', host)}, or env: {{kind: venv}} in the job")
    have = {text.split(" ")[0] for text in facts.python.packages}
    missing = sorted(set(wanted.names) - have)
    if not missing:
        return None
    message = f"{facts.python.executable} has no {', '.join(missing)}, and `kind: system` installs nothing"
    return _refused(host, message, "env: {kind: venv} in the job makes an environment")


def torch_build(facts: HostFacts, wanted: Requirements) -> str:
    """The build of torch for this host; empty where no torch is asked for, or the index's own is."""
    if "torch" not in wanted.names or wanted.torch == "default" or wanted.locked:
        return ""
    if wanted.torch != "auto":
        return wanted.torch
    nvidia = [gpu for gpu in facts.gpus if gpu.vendor == "nvidia"]
    if nvidia:
        driver = nvidia[0].driver.partition(".")[0]
        known = int(driver) if driver.isdigit() else 0
        return next((build for oldest, build in DRIVER_BUILDS if known >= oldest), "cpu")
    return ROCM_BUILD if facts.gpus else "cpu"


def index_of(build: str) -> str | None:
    """The package index of one build of torch; None for the usual one."""
    return TORCH_INDEX + build if build else None


def name_of(target: Target, packages: Sequence[Package], wanted: Requirements) -> str:
    """The environment's hash."""
    return env_hash(
        packages,
        python=target.python,
        platform=target.platform,
        build=target.build,
        verify=imports(wanted),
    )


def imports(wanted: Requirements) -> tuple[str, ...]:
    """Modules that prove the environment."""
    return tuple(IMPORTED[name] for name in wanted.names if name in IMPORTED)


def room_problem(host: Host, facts: HostFacts, packages: Sequence[Package]) -> ProvisionError | None:
    """Too little disk, as far as sizes are known."""
    needed = ROOM_FACTOR * sum(package.size for package in packages)
    if needed <= facts.disk_free:
        return None
    message = f"the environment takes about {_mb(needed)}, {_mb(facts.disk_free)} are free in {facts.workdir}"
    hint = f"llmctl hosts clean --limit {host.name}, or {_set('workdir', host)}"
    return ProvisionError(message, host=host.name, stage="bootstrap", hint=hint)


def steps(
    choice: Choice,
    facts: HostFacts,
    env: str,
    packages: Sequence[Package],
    *,
    wheelhouse: bool,
    fan_out: bool = False,
) -> list[str]:
    """What will be done on one host, a line each; empty: nothing."""
    if choice.stands is not None:
        return []
    layout = HostLayout(facts.workdir)
    python = choice.python or f"{layout.pythons}/…{choice.target.python}…/bin/python"
    lines = []
    if choice.python is None:
        lines.append(f"install Python {choice.target.python} with uv in {layout.pythons} ({choice.why})")
    if choice.default:
        lines.append(f"{layout.pythons}/default -> {python}: llmctl's own on this host")
    if wheelhouse:
        size = sum(package.size for package in packages)
        way = "host to host" if fan_out else "from here"
        lines.append(f"send what is missing of {len(packages)} wheels ({_mb(size)}) {way} to {layout.wheels}")
    lines.append(f"{python} -m venv --without-pip {layout.env(env)}")
    source = "from those wheels, no index asked" if wheelhouse else "from its package index, hashes checked"
    lines.append(f"install {len(packages)} packages {source}")
    lines.append("import what was asked for, write ready.json, rename into place")
    return lines


def _interpreter(facts: HostFacts, wanted: Requirements) -> tuple[str | None, str]:
    """(path, version) of the Python to build from; no path: one has to be installed.

    The configured one is taken where it does; then the newest that is there. One inside an environment of
    ours is no base: it is removed with that environment.
    """
    if facts.python is not None and _fit(facts.python.version, wanted.python):
        return facts.python.executable, facts.python.version
    ours = HostLayout(facts.workdir).envs + "/"
    found = [
        (python.version, python.path)
        for python in facts.more.pythons
        if _fit(python.version, wanted.python) and not python.path.startswith(ours)
    ]
    if found:
        version, path = max(found, key=lambda one: _number(one[0]))
        return path, version
    return None, wanted.python or DEFAULT_PYTHON


def _fit(version: str, wanted: str | None) -> bool:
    number = _number(version)[:2]
    if wanted is not None:
        return number == _number(wanted)
    return OLDEST <= number <= NEWEST_TRIED


def _number(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split(".")[:3]:
        digits = "".join(char for char in part if char.isdigit())
        parts.append(int(digits or 0))
    return tuple(parts)


def _target(facts: HostFacts, python: str, build: str) -> Target:
    return Target(python=python, machine=facts.machine, glibc=facts.more.glibc, build=build)


def _refused(host: Host, message: str, hint: str) -> ProvisionError:
    return ProvisionError(message, host=host.name, stage="bootstrap", hint=hint)


def _set(key: str, host: Host) -> str:
    return f"set `{key}:` for {host.name} in hosts.yaml"


def _mb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1.0, size / 1e6):.0f} MB"
