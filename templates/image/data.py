"""Samples for train.py: digits, each drawn a little differently. Standard library only.

    python data.py samples

Each sample is two files: `<number>.pgm`, a grey image of 16 x 16, and `<number>.cls`, the digit.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

SIZE, COUNT = 16, 2000

# Strokes of a seven-segment display in a box of 1 x 2, as (x, y) to (x, y).
SEGMENTS = {
    "top": ((0, 0), (1, 0)),
    "left_up": ((0, 0), (0, 1)),
    "right_up": ((1, 0), (1, 1)),
    "middle": ((0, 1), (1, 1)),
    "left_down": ((0, 1), (0, 2)),
    "right_down": ((1, 1), (1, 2)),
    "bottom": ((0, 2), (1, 2)),
}
NAMES = list(SEGMENTS)
# One bit per segment, in the order above.
DIGITS = [
    "1110111",
    "0010010",
    "1011101",
    "1011011",
    "0111010",
    "1101011",
    "1101111",
    "1010010",
    "1111111",
    "1111011",
]


def draw(digit: int, rng: random.Random) -> bytes:
    """Grey levels, row by row: strokes of a random size, place and slant, and noise."""
    image = [[rng.randrange(40) for _ in range(SIZE)] for _ in range(SIZE)]
    width, height = rng.uniform(4, 7), rng.uniform(4, 6)
    left, top, slant = rng.uniform(2, 6), rng.uniform(1, 3), rng.uniform(-0.2, 0.2)
    for name, bit in zip(NAMES, DIGITS[digit], strict=True):
        (x0, y0), (x1, y1) = SEGMENTS[name]
        for step in range(17 if bit == "1" else 0):
            x, y = x0 + (x1 - x0) * step / 16, y0 + (y1 - y0) * step / 16
            row = min(SIZE - 1, int(top + y * height))
            column = min(SIZE - 1, max(0, int(left + x * width + slant * (1 - y) * height)))
            image[row][column] = rng.randrange(180, 256)
    return bytes(level for row in image for level in row)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)  # noqa: S311
    for number in range(COUNT):
        digit = number % 10
        picture = b"P5 %d %d 255\n" % (SIZE, SIZE) + draw(digit, rng)
        (folder / f"{number:05d}.pgm").write_bytes(picture)
        (folder / f"{number:05d}.cls").write_text(str(digit))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "samples"))
