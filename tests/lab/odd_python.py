"""An interpreter for a host's `python:` that holds up one call of the agent, for as long as a test wants.

So a supervisor can be killed exactly while its order is under way, and the order comes all the same, late.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

WRAPPER = """#!/bin/sh
for word; do
  mv "{folder}/hold-$word" "{folder}/held-$word" || continue
  echo $$ > "{folder}/pid-$word"
  while [ -e "{folder}/held-$word" ]; do sleep 0.05; done
done 2>/dev/null
exec {python} "$@"
"""


@dataclass(frozen=True, kw_only=True)
class OddPython:
    """`path` is what goes into hosts.yaml."""

    folder: Path
    path: Path

    def hold(self, verb: str) -> None:
        """The next call of this verb of the agent waits in front of it."""
        (self.folder / f"hold-{verb}").touch()

    def holds(self, verb: str) -> bool:
        """It has come, and waits."""
        return (self.folder / f"pid-{verb}").exists()

    def let_go(self, verb: str) -> None:
        """It goes on, however late that is."""
        (self.folder / f"held-{verb}").unlink()

    def is_through(self, verb: str) -> bool:
        """It has done what it came for, or was refused."""
        pid = (self.folder / f"pid-{verb}").read_text().strip()
        return not Path("/proc", pid).exists()


def odd_python(folder: Path) -> OddPython:
    """Make one in this folder."""
    folder.mkdir(parents=True)
    path = folder / "python"
    path.write_text(WRAPPER.format(folder=folder, python=sys.executable))
    path.chmod(0o755)
    return OddPython(folder=folder, path=path)
