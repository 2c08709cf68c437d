"""Which tests share a process where several run side by side (pytest-xdist's `-n`).

Stores and SSH hosts take their time to start, so the tests of each stay in one process, and so do those of
one file, whose fixtures they share. The processes may start servers twice all the same; it only costs time.
(xdist's own `loadgroup` has no effect with pytest 9.2, which keeps node ids elsewhere.)
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

_SIGNS = {
    "stores": ("pytest.mark.stores", "tests.contract.stores"),
    "hosts": ("pytest.mark.hosts", "tests.contract.transports"),
}
"""What stands in a file whose tests need those servers."""


@cache
def group(file: str) -> str:
    """The group of the tests of `file`, a path below the repository's root."""
    text = Path(file).read_text()
    return next((name for name, signs in _SIGNS.items() if any(sign in text for sign in signs)), file)


def scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """xdist's scheduler of whole groups, the largest first."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid.partition("::")[0])

    return Groups(config, log)
