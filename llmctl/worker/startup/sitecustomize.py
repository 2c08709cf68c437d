"""Imported by Python itself in every rank: on one signal the rank writes its stacks into the attempt's
folder.

So a hang can be seen in any script, unmodified, with nothing installed on the host. The signal is a real-time
one (`wire.progress.STACK_SIGNAL`) that scripts, launchers and schedulers leave alone. Outside of a rank
nothing happens, and a sitecustomize that this one hides is imported as if we were not here.
"""

from __future__ import annotations

import os
import sys

_SIGNAL = 50  # wire.progress.STACK_SIGNAL; importing it would cost every interpreter of a job a package
_OUT_OF_THE_WAY = 100
"""A descriptor that no program counts on; the usual lowest ones may be."""


def _listen(environ: os._Environ[str]) -> None:
    folder, rank = environ.get("LLMCTL_ATTEMPT_DIR"), environ.get("RANK", "")
    if not folder or not rank.isdecimal():
        return
    try:
        import faulthandler
        import fcntl

        path = os.path.join(folder, f"stack-{rank}.txt")
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        kept = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
        os.close(opened)
        faulthandler.register(_SIGNAL, file=kept, all_threads=True)
    except (ImportError, OSError, ValueError, RuntimeError):
        return  # a rank without this works as well


def _import_hidden() -> None:
    """The sitecustomize of the host or its venv, found behind this folder."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    here = os.path.dirname(os.path.abspath(__file__))
    behind = [entry for entry in sys.path if os.path.abspath(entry) != here]
    spec = PathFinder.find_spec("sitecustomize", behind)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    _listen(os.environ)
    _import_hidden()
