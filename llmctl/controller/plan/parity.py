"""Are the hosts of a run alike where they must be? Pure; names the odd one out and what differs.

One rank with another torch, NCCL or code does not fail at once: it hangs in the first collective, or trains a
slightly different model. So this is asked before every attempt; `--allow-mismatch` goes on knowingly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llmctl.controller.probe.facts import HostFacts
from llmctl.errors import ConfigError

ENV = "env"
FIELDS = ("python", "torch", "cuda", "nccl", "driver", "code", "data", ENV)
"""What is compared, in the order in which it is told; also the words of --allow-mismatch."""

MOST_PACKAGES = 4
MADE = re.compile(r"/env/([0-9a-f]{64})/bin/python")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not the same everywhere.

    Attributes:
        usual: what most hosts have, None where there is no majority. odd: the others, by host.
        values: every host's, `-` where it has none.
    """

    what: str
    usual: str | None
    odd: dict[str, str]
    values: dict[str, str]
    detail: str = ""

    @property
    def message(self) -> str:
        """`torch differs: c has 2.12.0, the others 2.13.0`; without a majority every host is named."""
        detail = f" ({self.detail})" if self.detail else ""
        if self.usual is None:
            shown = ", ".join(f"{host} {value}" for host, value in _few(self.values))
            return f"{self.what} differs: {shown}{detail}"
        odd = ", ".join(f"{host} has {value}" for host, value in _few(self.odd))
        return f"{self.what} differs: {odd}; the others {self.usual}{detail}"


def differences(
    facts: Mapping[str, HostFacts], *, code: Mapping[str, str] | None = None, gpus: bool = True
) -> list[Difference]:
    """What differs between these hosts, in the order of FIELDS.

    Args:
        code: hash of the code tree that each host now has, where code was pushed.
        gpus: the job uses GPUs; else drivers, CUDA and NCCL may differ.
    """
    found = []
    for what, values in compared(facts, code=code, gpus=gpus).items():
        difference = _difference(what, values)
        if difference is not None:
            found.append(difference)
    return _without_echoes(found, facts)


def compared(
    facts: Mapping[str, HostFacts], *, code: Mapping[str, str] | None = None, gpus: bool = True
) -> dict[str, dict[str, str]]:
    """For each of FIELDS every host's value, `-` where it has none; the same arguments as `differences`."""
    readers: dict[str, Callable[[HostFacts], str | None]] = {
        "python": _python,
        "torch": lambda f: f.python.torch if f.python else None,
        "cuda": lambda f: f.python.cuda if f.python and gpus else None,
        "nccl": lambda f: f.python.nccl if f.python and gpus else None,
        "driver": lambda f: f.gpus[0].driver if f.gpus and gpus else None,
        "code": lambda f: (code or {}).get(f.host, "")[:12] or None,
        "data": _data,
        ENV: _environment,
    }
    return {what: {name: readers[what](f) or "-" for name, f in facts.items()} for what in FIELDS}


def summary(values: Mapping[str, Mapping[str, str]], allowed: Sequence[str] = ()) -> str:
    """`python 3.12 · torch 2.13.0 · env 106 packages, 1f2e3d`: what is shared, what is not."""
    parts = []
    for what, by_host in values.items():
        found = set(by_host.values())
        if len(found) > 1:
            parts.append(f"{what} differs" + (" (allowed)" if what in allowed else ""))
        elif found != {"-"} and what != "data":
            parts.append(f"{what} {found.pop()}")
    return " · ".join(parts)


def refusals(found: Sequence[Difference], allowed: Sequence[str]) -> list[Difference]:
    """Those differences that were not allowed."""
    return [difference for difference in found if difference.what not in allowed]


def parse_allowed(texts: Sequence[str]) -> tuple[str, ...]:
    """`python,torch` and repeated options as words. Raises ConfigError for a word that is not compared."""
    words = tuple(word.strip() for text in texts for word in text.split(",") if word.strip())
    for word in words:
        if word not in FIELDS:
            raise ConfigError(
                f"--allow-mismatch {word}: no such thing is compared", hint="one of " + ", ".join(FIELDS)
            )
    return words


def _difference(what: str, values: dict[str, str]) -> Difference | None:
    counts = Counter(values.values()).most_common()
    if len(counts) < 2:
        return None
    usual = counts[0][0] if counts[0][1] > counts[1][1] else None
    odd = {host: value for host, value in values.items() if value != usual}
    return Difference(what=what, usual=usual, odd=odd, values=values)


def _python(facts: HostFacts) -> str | None:
    """Major and minor: patch releases of Python work together, and hosts are seldom patched at once."""
    return ".".join(facts.python.version.split(".")[:2]) if facts.python else None


def _data(facts: HostFacts) -> str | None:
    """Checksum and size of the manifest; a store that is no folder has none here, the same everywhere."""
    return " + ".join(text for text in facts.more.data if text) or None


def _environment(facts: HostFacts) -> str | None:
    """A short name of the set of installed packages: the environment's hash where `bootstrap` made it."""
    if facts.python is None or not facts.python.packages:
        return None
    made = MADE.search(facts.python.executable)
    if made:
        return f"{len(facts.python.packages)} packages, {made[1][:12]}"
    return f"{len(facts.python.packages)} packages, {_digest(facts.python.packages)}"


def _digest(packages: Sequence[str]) -> str:
    """FNV-1a over the lines: a name for people to compare, not a proof."""
    value = 0xCBF29CE484222325
    for byte in "\n".join(packages).encode():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{value >> 40:06x}"


def _without_echoes(found: list[Difference], facts: Mapping[str, HostFacts]) -> list[Difference]:
    """The environment's difference says which packages; where only torch's own differ, it is no news."""
    told = {difference.what for difference in found}
    kept = []
    for difference in found:
        if difference.what != ENV:
            kept.append(difference)
            continue
        packages = changed_packages(facts, skip_torch="torch" in told or "python" in told)
        if not packages and not told & {"torch", "python"} and _same_machine(facts):
            kept.append(_with_detail(difference, "the same versions from other files"))
        if packages:
            more = len(packages) - MOST_PACKAGES
            detail = ", ".join(packages[:MOST_PACKAGES]) + (f" and {more} more" if more > 0 else "")
            kept.append(_with_detail(difference, detail))
    return kept


def _same_machine(facts: Mapping[str, HostFacts]) -> bool:
    """Of one architecture: others get the same versions from other files, as they must."""
    return len({known.machine for known in facts.values()}) == 1


def _with_detail(difference: Difference, detail: str) -> Difference:
    return Difference(
        what=difference.what,
        usual=difference.usual,
        odd=difference.odd,
        values=difference.values,
        detail=detail,
    )


def changed_packages(facts: Mapping[str, HostFacts], *, skip_torch: bool = False) -> list[str]:
    """Names of packages that are not everywhere in one version; torch's own companions may be left out."""
    sets = [set(known.python.packages) for known in facts.values() if known.python]
    if not sets:
        return []
    varying = {text for one in sets for text in one if not all(text in other for other in sets)}
    names = sorted({text.split(" ")[0] for text in varying})
    return [name for name in names if not (skip_torch and _of_torch(name))]


def _of_torch(name: str) -> bool:
    return name in ("torch", "triton", "torchvision", "torchaudio") or name.startswith(("nvidia-", "cuda-"))


def _few(values: Mapping[str, str], most: int = 6) -> list[tuple[str, str]]:
    return list(values.items())[:most]
