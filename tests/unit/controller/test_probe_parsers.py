"""Probe outputs of real machines become facts; a new machine is a new file in tests/hostdata."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.probe.gpus import nvidia
from llmctl.controller.probe.parsers import disk_free, parse, sections
from llmctl.controller.probe.tools import environments
from llmctl.wire import codec
from llmctl.wire.environments import EnvReady

DATA = Path(__file__).parents[2] / "hostdata"


def facts(name: str) -> HostFacts:
    return parse("a", "\n" + (DATA / f"{name}.txt").read_text())


def test_a_cpu_host_with_torch_in_a_venv() -> None:
    """Everything that a CPU job needs is read, torch's version without importing torch."""
    found = facts("debian12-cpu-venv")
    assert found.python is not None
    assert (found.python.executable, found.python.version) == ("/opt/venv/bin/python", "3.11.7")
    assert (found.python.torch, found.python.cuda) == ("2.13.0+cpu", None)
    assert found.system == "Debian GNU/Linux 12 (bookworm)"
    assert (found.cores, found.memory, found.gpus) == (2, 24684084 * 1024, ())
    assert found.disk_free == 79430136 * 1024
    assert found.workdir_error is None
    assert found.agent_bytes == 0
    assert not found.data_missing


def test_a_gpu_host_with_a_login_banner() -> None:
    """Noise before the first section is not a fact; GPUs come with memory in bytes and their driver."""
    found = facts("ubuntu-8xh100")
    assert len(found.gpus) == 8
    assert found.gpus[0].memory == 81559 << 20
    assert found.gpus[7].driver == "570.86.15"
    assert found.agent_bytes == 301442
    assert found.python is not None
    assert found.python.route_interface == "ib0"


def test_a_broken_host_says_why() -> None:
    """A missing interpreter, a dead driver and a read-only home are facts, not parser errors."""
    found = facts("no-python-broken-driver")
    assert found.python is None
    assert found.python_error == "llmctl-probe: 27: python3.12: not found"
    assert found.gpus == ()
    assert found.workdir_error == "mkdir: cannot create directory '/root/.llmctl': Read-only file system"
    assert found.disk_free == 0
    assert found.data_missing == (0,)


def test_a_script_that_broke_off_is_an_error() -> None:
    """Half a probe is no probe: it must not look like a host without GPUs."""
    text = (DATA / "ubuntu-8xh100.txt").read_text()
    with pytest.raises(ValueError, match="did not run to its end"):
        parse("a", "\n" + text[: text.index("@@llmctl:end")])


def test_sections_drop_what_precedes_the_first_mark() -> None:
    """A shell's own banner never becomes a section."""
    assert sections("\nhello\n@@llmctl:a\n1\n2\n@@llmctl:b\n") == {"a": "1\n2", "b": ""}


@pytest.mark.parametrize(
    ("text", "free"),
    [
        ("", 0),
        ("df: /x: No such file or directory", 0),
        ("Filesystem 1024-blocks Used Available Capacity Mounted on\noverlay 10 4 6 40% /", 6 * 1024),
    ],
)
def test_disk_free_of_df_output(text: str, free: int) -> None:
    """Nothing readable counts as no room, never as endless room."""
    assert disk_free(text) == free


def test_a_gpu_name_is_kept_as_it_is() -> None:
    """Unknown memory (`[N/A]`, as on some integrated GPUs) is 0, the GPU still counts."""
    (gpu,) = nvidia("0, NVIDIA GB10, [N/A], 580.95.05")
    assert (gpu.model, gpu.memory) == ("NVIDIA GB10", 0)


def test_environments_are_told_by_their_request_and_a_gone_interpreter_is_seen() -> None:
    """`usable` belongs to the line before it; a ready.json that can't be read is no environment."""
    ready = EnvReady(
        hash="e" * 64, request="r", python="/w/env/e/bin/python", base="/usr/bin/python3", version="3.12.3",
        build="cpu", packages=("torch 2.13.0",), created=1.0,
    )  # fmt: skip
    line = codec.dumps(ready)
    found = environments(f"one\t{line}\nusable\ntwo\t{line}\nthree\t{{broken\nusable\n")
    assert [(env.request, env.usable, env.python, env.build) for env in found] == [
        ("one", True, "3.12.3", "cpu"),
        ("two", False, "3.12.3", "cpu"),
    ]
