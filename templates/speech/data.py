"""Samples for train.py: words of two to four letters, each letter a tone. Standard library only.

    python data.py samples

Each sample is two files: `<number>.wav`, half a second at 8 kHz, and `<number>.txt`, the word. Letters begin
at random times, last a random while and are never exactly in tune: where they are is what CTC has to find.
"""

from __future__ import annotations

import array
import math
import random
import sys
import wave
from pathlib import Path

RATE, LENGTH, COUNT = 8000, 4000, 1000
TONES = {"a": 300, "e": 500, "i": 800, "o": 1200, "u": 1800, "y": 2600}


def sound(word: str, rng: random.Random) -> array.array:
    """16-bit samples: faint noise, and one tone after the other."""
    samples = [rng.gauss(0, 300) for _ in range(LENGTH)]
    room = LENGTH // len(word)
    for place, letter in enumerate(word):
        pitch, loud = TONES[letter] * rng.uniform(0.96, 1.04), rng.uniform(5000, 12000)
        length = int(room * rng.uniform(0.5, 0.85))
        first = place * room + rng.randrange(room - length)
        for t in range(length):
            samples[first + t] += (
                loud * math.sin(math.pi * t / length) * math.sin(2 * math.pi * pitch * t / RATE)
            )
    return array.array("h", [int(max(-32768, min(32767, sample))) for sample in samples])


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)  # noqa: S311
    for number in range(COUNT):
        word = "".join(rng.choice(list(TONES)) for _ in range(rng.randint(2, 4)))
        (folder / f"{number:05d}.txt").write_text(word)
        with wave.open(str(folder / f"{number:05d}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(sound(word, rng).tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "samples"))
