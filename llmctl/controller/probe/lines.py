"""Small readings that the parsers of a probe's sections share. Pure; what can't be read is None."""

from __future__ import annotations

from collections.abc import Iterator


def whole(text: str | None) -> int | None:
    """A whole number, or None: `[N/A]`, `unlimited`, `max` and the like."""
    text = (text or "").strip()
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() else None


def number(text: str | None) -> float | None:
    """A finite number with `.`, or None."""
    try:
        value = float((text or "").strip())
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def pairs(text: str) -> dict[str, str]:
    """`key<tab>value` lines; a key without a value is left out."""
    found = (line.partition("\t") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in found if value.strip()}


def blocks(text: str, key: str) -> Iterator[tuple[str, list[str]]]:
    """`key<tab>name` lines, each with the lines that follow it."""
    name: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        first, _, rest = line.partition("\t")
        if first == key:
            if name is not None:
                yield name, lines
            name, lines = rest, []
        elif name is not None:
            lines.append(line)
    if name is not None:
        yield name, lines


def below_unlimited(value: int | None) -> int | None:
    """None for the huge numbers by which kernels say `no limit`, and for -1."""
    return value if value is not None and 0 <= value < 1 << 60 else None
