"""`data shard` beside the bare tokenizer: tokens per second and core, scaling, and memory for a large input.

    python -m tests.bench.bench_shard                                # speed, some minutes
    LLMCTL_BENCH_GB=10 python -m tests.bench.bench_shard --memory    # memory of all processes for 10 GB

The memory run takes the tokenizer `bytes`, which is through with ten gigabytes soonest; the speed run a BPE.

Ways take turns in one run. The bare way encodes texts that are in memory already, in one thread, and keeps
nothing; ours reads JSON lines from a disk, and writes and hashes shards.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llmctl.storage.corpus.shard import shard

DOCUMENT = 4_000
"""Characters per document, about a web page."""

VOCABULARY = 16_000
SAMPLE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One way: tokens, seconds by the clock, and CPU seconds of all its processes."""

    tokens: int
    wall: float
    cpu: float


def real_texts(characters: int) -> list[str]:
    """Documents of the standard library's own sources, over and over until there are enough."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    whole = "".join(path.read_text(errors="replace") for path in files)
    pages = [whole[at : at + DOCUMENT] for at in range(0, len(whole), DOCUMENT)]
    return [pages[number % len(pages)] for number in range(characters // DOCUMENT)]


def make_tokenizer(path: Path, texts: list[str]) -> Tokenizer:
    """A byte-level BPE of the GPT-2 kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return Tokenizer.from_file(str(path))


def write_lines(path: Path, texts: list[str], size: int) -> int:
    """JSON lines until the file has `size` bytes; the bytes written."""
    block = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    with path.open("wb") as out:
        while out.tell() < size:
            out.write(block)
        return out.tell()


def cpu_seconds() -> float:
    """User and system time of this process and of its ended children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def bare(tokenizer: Tokenizer, texts: list[str], *, fast: bool) -> Timing:
    """The encoder alone, in batches of the size that ours has; `fast`: without offsets, as ours does."""
    encode = tokenizer.encode_batch_fast if fast else tokenizer.encode_batch
    tokens, wall, cpu = 0, time.perf_counter(), cpu_seconds()
    step = (1 << 20) // DOCUMENT
    for at in range(0, len(texts), step):
        tokens += sum(len(found.ids) for found in encode(texts[at : at + step]))
    return Timing(tokens=tokens, wall=time.perf_counter() - wall, cpu=cpu_seconds() - cpu)


def ours(source: Path, dest: Path, tokenizer: Path, workers: int) -> Timing:
    """The whole of `shard`, start of its processes included."""
    shutil.rmtree(dest, ignore_errors=True)
    wall, cpu = time.perf_counter(), cpu_seconds()
    manifest = shard([str(source)], str(dest), tokenizer=str(tokenizer), workers=workers)
    tokens = manifest.tokens - manifest.documents  # the bare way adds no end tokens
    return Timing(tokens=tokens, wall=time.perf_counter() - wall, cpu=cpu_seconds() - cpu)


def speed(folder: Path, megabytes: int, rounds: int) -> None:
    texts = real_texts(megabytes * 1_000_000)
    tokenizer = make_tokenizer(folder / "tokenizer.json", texts[:2000])
    source = folder / "input.jsonl"
    write_lines(source, texts, 1)
    names = ("encode_batch, bare", "encode_batch_fast, bare", "1 worker", "2 workers")
    timings: dict[str, list[Timing]] = {name: [] for name in names}
    for _ in range(rounds):
        for fast, name in ((False, names[0]), (True, names[1])):
            timings[name].append(bare(tokenizer, texts, fast=fast))
        for workers, name in ((1, "1 worker"), (2, "2 workers")):
            timings[name].append(ours(source, folder / "out", folder / "tokenizer.json", workers))
    base = statistics.median(one.tokens / one.wall for one in timings["encode_batch, bare"])
    print(f"\n| {megabytes} MB (n={rounds}) | tokens/s | of bare | tokens per CPU second, of bare |")
    print("|---|---|---|---|")
    base_cpu = statistics.median(one.tokens / one.cpu for one in timings["encode_batch, bare"])
    for name, found in timings.items():
        rate = statistics.median(one.tokens / one.wall for one in found)
        per_cpu = statistics.median(one.tokens / one.cpu for one in found)
        print(f"| {name} | {rate / 1e6:.2f} M | {rate / base:.2f} | {per_cpu / base_cpu:.2f} |")
    assert len({one.tokens for found in timings.values() for one in found}) == 1, "other tokens"


def resident(pid: int) -> int:
    """Bytes of a process and its descendants that are in memory, shared pages counted once per process."""
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            lists = [task / "children" for task in Path(f"/proc/{one}/task").iterdir()]
            todo += [int(child) for each in lists for child in each.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS"))
    return total


def watch(stop: threading.Event) -> Iterator[int]:
    while not stop.wait(SAMPLE_S):
        yield resident(os.getpid())


def memory(folder: Path, gigabytes: float) -> None:
    """Shard a large input once, and print the peak of all processes together."""
    source = folder / "large.jsonl"
    size = write_lines(source, real_texts(20_000_000), int(gigabytes * 1e9))
    stop = threading.Event()
    peaks: list[int] = []
    thread = threading.Thread(target=lambda: peaks.append(max(watch(stop), default=0)))
    thread.start()
    started = time.perf_counter()
    manifest = shard([str(source)], str(folder / "large"))
    took = time.perf_counter() - started
    stop.set()
    thread.join()
    print(f"\n{size / 1e9:.2f} GB of JSON lines, {manifest.tokens / 1e6:.0f} M tokens in {took:.0f} s:")
    print(f"peak memory of all processes {peaks[0] / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; else a temporary folder")
    parser.add_argument("--memory", action="store_true", help="the memory run instead of the speed run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        if given.memory:
            memory(Path(name), float(os.environ.get("LLMCTL_BENCH_GB", "0.2")))
        else:
            speed(Path(name), given.megabytes, given.rounds)


if __name__ == "__main__":
    main()
