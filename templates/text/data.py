"""Samples for train.py: windows of English text from Python's own documentation strings.

    python data.py samples

Each sample is one file of 65 bytes, `<number>.txt`: 64 characters, and the one that follows each of them.
"""

from __future__ import annotations

import pydoc_data.topics
import sys
from pathlib import Path

WINDOW, STRIDE, COUNT = 65, 64, 2000


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(pydoc_data.topics.topics.values()).encode("ascii", "replace")
    for number in range(min(COUNT, (len(text) - 1) // STRIDE)):
        (folder / f"{number:05d}.txt").write_bytes(text[number * STRIDE : number * STRIDE + WINDOW])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "samples"))
