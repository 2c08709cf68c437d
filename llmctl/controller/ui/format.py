"""Numbers for people: durations, sizes, rates. Pure."""

from __future__ import annotations

MINUTE, HOUR, DAY = 60, 3600, 86400


def duration(seconds: float | None) -> str:
    """`0.6 s`, `41 s`, `2 m 05 s`, `2 h 07 m`, `3 d 4 h`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 2 * MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} m {whole % MINUTE:02d} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE:02d} m"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def age(seconds: float | None) -> str:
    """One unit is enough for a column: `41 s`, `36 m`, `3 h`, `2 d`."""
    if seconds is None:
        return "-"
    for unit, size in (("d", DAY), ("h", HOUR), ("m", MINUTE)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def size(count: float | None) -> str:
    """Bytes in powers of 1000: `18 kB`, `1.1 GB`."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 9.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def rate(per_second: float | None) -> str:
    """`41.2k`, `980`, `1.3M`, `6.7B`: the unit stands beside it."""
    if per_second is None:
        return "-"
    if per_second < 999.5:
        return f"{per_second:.0f}"
    if per_second < 999_500:
        return f"{per_second / 1e3:.1f}k"
    if per_second < 999_500_000:
        return f"{per_second / 1e6:.1f}M"
    return f"{per_second / 1e9:.1f}B"


def number(value: float | None, digits: int = 3) -> str:
    """A loss or the like: fixed digits, `-` for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def learning_rate(value: float | None) -> str:
    """`2.9e-4`, without the zero that Python puts into the exponent."""
    if value is None:
        return "-"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def names(items: list[str], most: int = 4) -> str:
    """`a, b`, or `a, b, c, d and 60 more`."""
    if len(items) <= most:
        return ", ".join(items)
    return ", ".join(items[:most]) + f" and {len(items) - most} more"


def steps(step: int | None, total: int | None) -> str:
    """`420/5000`, `420`, or `-`."""
    if step is None:
        return "-"
    return str(step) if total is None else f"{step}/{total}"
