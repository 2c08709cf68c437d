"""Modules that a library imports at once and needs almost never: loaded when first used."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


def defer(name: str) -> None:
    """Let `import NAME` cost nothing until an attribute of it is asked for; a missing one stays missing.

    importlib's own LazyLoader does not do: up to Python 3.11 the second `import` of a module loads it.
    """
    if name in sys.modules or importlib.util.find_spec(name) is None:
        return
    stand_in = ModuleType(name)

    def real(attribute: str) -> Any:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    stand_in.__dict__["__getattr__"] = real
    sys.modules[name] = stand_in
