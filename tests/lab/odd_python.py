"""An interpreter for a host's `python:` whose wall clock can be set, and whose calls can be held up.

Everything that llmctl runs on the host goes through it: the agent's verbs, its daemon, the ranks. The clock
is moved in front of the C library (LD_PRELOAD), so every program sees it. The monotonic clock stays the
kernel's, as in a real jump; so do the time stamps of files, other than in one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
    char text[32] = {0};
    int fd = open(OFFSET, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    long got = read(fd, text, sizeof text - 1);
    close(fd);
    return got > 0 ? atol(text) : 0;
}
int clock_gettime(clockid_t which, struct timespec *now) {
    int code = syscall(SYS_clock_gettime, which, now);
    if (!code && which == CLOCK_REALTIME) now->tv_sec += shift();
    return code;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    int code = clock_gettime(CLOCK_REALTIME, &found);
    if (!code && now) { now->tv_sec = found.tv_sec; now->tv_usec = found.tv_nsec / 1000; }
    return code;
}
time_t time(time_t *to) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (to) *to = found.tv_sec;
    return found.tv_sec;
}
"""

WRAPPER = """#!/bin/sh
for word; do
  mv "{folder}/hold-$word" "{folder}/held-$word" || continue
  echo $$ > "{folder}/pid-$word"
  while [ -e "{folder}/held-$word" ]; do sleep 0.05; done
done 2>/dev/null
LD_PRELOAD={preload} exec {python} "$@"
"""


@dataclass(frozen=True, kw_only=True)
class OddPython:
    """`path` is what goes into hosts.yaml; `preload`: the clock alone, for LD_PRELOAD."""

    folder: Path
    path: Path
    preload: Path | None

    def jump(self, seconds: int) -> None:
        """Every wall clock behind this interpreter is so far off now; at once, also in what runs already."""
        beside = self.folder / ".offset"
        beside.write_text(str(seconds))
        beside.replace(self.folder / "offset")

    def hold(self, verb: str) -> None:
        """The next call of this verb of the agent waits in front of it."""
        (self.folder / f"hold-{verb}").touch()

    def holds(self, verb: str) -> bool:
        """It has come, and waits."""
        return (self.folder / f"pid-{verb}").exists()

    def let_go(self, verb: str) -> None:
        """It goes on, however late that is."""
        (self.folder / f"held-{verb}").unlink()

    def is_through(self, verb: str) -> bool:
        """It has done what it came for, or was refused."""
        pid = (self.folder / f"pid-{verb}").read_text().strip()
        return not Path("/proc", pid).exists()


def odd_python(folder: Path, *, clock: bool = False) -> OddPython:
    """Make one in this folder. `clock`: its clock can jump; without a C compiler the test is skipped."""
    folder.mkdir(parents=True)
    preload = _clock(folder) if clock else None
    path = folder / "python"
    path.write_text(WRAPPER.format(folder=folder, preload=preload or "", python=sys.executable))
    path.chmod(0o755)
    return OddPython(folder=folder, path=path, preload=preload)


def _clock(folder: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler, so no clock that can jump")
    source, made = folder / "clock.c", folder / "clock.so"
    source.write_text(CLOCK)
    argv = [compiler, "-shared", "-fPIC", f'-DOFFSET="{folder}/offset"', "-o", made, source]
    subprocess.run(argv, check=True, capture_output=True)
    return made
