"""`Plan`: how a model of your own may be spread. Names only; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Names of submodules, as in `named_modules()`, or patterns of them such as `blocks.*.up`.

    Whole copies (`dp_replicate`) need no plan. Each other dimension of `parallel:` reads one part of it.

    Attributes:
        columns: `nn.Linear`s whose outputs the tp ranks share: each computes its part of the features.
        rows: `nn.Linear`s whose inputs are such parts; their output is whole again. Between a column-wise
            and a row-wise layer only operations on single features (or whole heads) make sense.
        blocks: modules that FSDP (`dp_shard`) gathers one by one; what they leave is gathered at once.
        cuts: children of the model, an `nn.Sequential`, with which a pipeline's (`pp`) second, third ...
            stage begins. Empty: equally many children each.
    """

    columns: Sequence[str] = ()
    rows: Sequence[str] = ()
    blocks: Sequence[str] = ()
    cuts: Sequence[str] = ()


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Those of `names` that one of `patterns` fits; `*` stands for one part of a name between dots."""
    return [name for name in names if any(_fits(name, pattern) for pattern in patterns)]


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
