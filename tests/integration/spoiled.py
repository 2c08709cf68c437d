"""Ranks of the built-in recipe that are slow or stand still: a `sitecustomize.py` for their PYTHONPATH."""

from __future__ import annotations

from pathlib import Path

# In the first attempt rank 1 gets this `spoil(step)` as soon as it imports llmctl.worker.step.
LOADER = """
import os, sys, time
from importlib import abc, util

class Loader(abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "llmctl.worker.step":
            return None
        sys.meta_path.remove(self)
        spec = util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            spoil(module)
        spec.loader.exec_module = exec_module
        return spec

if os.environ.get("RANK") == "1" and os.environ["LLMCTL_ATTEMPT"] == "1":
    sys.meta_path.insert(0, Loader())
"""


def write_spoil(folder: Path, spoil: str) -> None:
    """Make the folder; `spoil`: source of a function of that name, which changes the module it is given."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(LOADER + spoil)
