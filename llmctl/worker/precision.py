"""Which number format the forward pass runs in, and why. Weights and optimizer stay fp32 in every case."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from llmctl.errors import ConfigError

FAST_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""CPU features that multiply bf16 faster than fp32; the last one is Arm's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedPrecision:
    """`bf16` autocast or plain fp32 on one kind of device; `reason` is for the log."""

    device_type: str
    bf16: bool
    reason: str

    def autocast(self) -> AbstractContextManager[object]:
        """The context for a forward pass."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=torch.bfloat16)

    @property
    def name(self) -> str:
        return "bf16" if self.bf16 else "fp32"


def choose_precision(setting: str, device_type: str, *, fast_everywhere: bool) -> MixedPrecision:
    """What `setting` (`auto`, `bf16`, `fp32`) means here.

    Args:
        fast_everywhere: bf16 is fast on the devices of all ranks; they must not differ in precision.

    Raises:
        ConfigError: no such setting.
    """
    if setting not in ("auto", "bf16", "fp32"):
        raise ConfigError(f"precision: {setting!r} is not one of auto, bf16, fp32", stage="recipe")
    if setting != "auto":
        return MixedPrecision(device_type=device_type, bf16=setting == "bf16", reason="as set")
    reason = "fast on every rank's device" if fast_everywhere else "bf16 is not fast on every rank's device"
    return MixedPrecision(device_type=device_type, bf16=fast_everywhere, reason=reason)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether this device has hardware for bf16. By its features, not by a stopwatch: a run must not
    change its numbers because the machine was busy when it began."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return bool(cpu_flags(text) & FAST_CPU_FLAGS)


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The feature flags of the first processor in the text of /proc/cpuinfo (x86 `flags`, Arm `Features`)."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
