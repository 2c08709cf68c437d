"""The plan of a bootstrap: which Python, which torch, which steps, which refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.controller.config.models import EnvSection
from llmctl.controller.config.requirements import Requirements, requirements_of
from llmctl.controller.config.types import Host
from llmctl.controller.plan.bootstrap import (
    choose,
    name_of,
    room_problem,
    steps,
    system_problem,
    torch_build,
)
from llmctl.controller.plan.fanout import tree
from llmctl.controller.probe.facts import Gpu, HostFacts
from llmctl.controller.probe.machine import FoundEnv, FoundPython
from llmctl.errors import ConfigError, ProvisionError
from llmctl.wire.environments import Package
from tests.unit.controller.builders import facts as some_facts

HOST = Host(name="a", addr="10.0.0.1")
PACKAGE = Package(name="torch", version="2.13.0", sha256=("a" * 64,), size=100 << 20)


def asked(*lines: str, **keys: Any) -> Requirements:
    found = requirements_of(EnvSection(requirements=list(lines or ("torch",)), **keys), Path())
    assert found is not None
    return found


def host(python: str | None = "3.12.3", *others: str, **changes: Any) -> HostFacts:
    """A host whose configured Python is `python`, with other Pythons beside it."""
    base = some_facts("a")
    assert base.python is not None
    own = replace(base.python, version=python) if python else None
    found = tuple(FoundPython(path=f"/opt/{version}/bin/python3", version=version) for version in others)
    more = replace(base.more, **{"glibc": "2.36", "pythons": found, **changes.pop("more", {})})
    return replace(base, python=own, more=more, **changes)


def test_the_configured_python_is_taken_where_it_fits_else_the_newest_that_does() -> None:
    """3.8 is too old, 3.15 too new to be tried unasked; a version that the job names is taken literally."""
    assert choose(HOST, host("3.11.2", "3.13.1"), asked()).target.python == "3.11"
    chosen = choose(HOST, host("3.8.10", "3.9.1", "3.12.1", "3.13.2", "3.15.0"), asked())
    assert (chosen.python, chosen.target.python, chosen.default) == ("/opt/3.13.2/bin/python3", "3.13", True)
    assert choose(HOST, host("3.12.3", "3.9.1"), asked(python="3.9")).python == "/opt/3.9.1/bin/python3"
    none = choose(HOST, host(None, "3.8.1"), asked())
    assert (none.python, none.target.python) == (None, "3.12")


def test_what_can_not_be_made_ready_is_refused_with_a_way_on() -> None:
    """A workdir that can't be written, and a host without glibc."""
    with pytest.raises(ProvisionError, match="read-only") as refused:
        choose(HOST, host(workdir_error="read-only file system"), asked())
    assert "set `workdir:` for a" in str(refused.value.hint)
    with pytest.raises(ProvisionError, match="no glibc"):
        choose(HOST, host(more={"glibc": ""}), asked())


@pytest.mark.parametrize(
    ("driver", "vendor", "build"),
    [("580.65.06", "nvidia", "cu130"), ("570.86.15", "nvidia", "cu128"), ("470.1", "nvidia", "cpu"),
     ("6.10.5", "amd", "rocm6.4"), (None, None, "cpu")],
)  # fmt: skip
def test_torch_is_built_for_what_the_driver_runs(driver: str | None, vendor: str | None, build: str) -> None:
    """By the driver's age; CPUs get the small build; the job's own word wins; without torch there is none."""
    gpus = (Gpu(index=0, model="x", memory=1, driver=driver, vendor=vendor),) if driver and vendor else ()
    known = host(gpus=gpus)
    assert torch_build(known, asked()) == build
    assert torch_build(known, asked(torch="cu126")) == "cu126"
    assert torch_build(known, asked(torch="default")) == torch_build(known, asked("numpy")) == ""


def test_what_stands_is_kept_until_the_driver_or_the_interpreter_goes() -> None:
    """Nothing to do for a usable environment of this request and build; else it is made."""
    wanted = asked()
    env = FoundEnv(
        request=wanted.key,
        hash="e" * 64,
        path="/w/env/e/bin/python",
        python="3.12.3",
        build="cpu",
        usable=True,
    )
    facts = host(more={"envs": (env,)})
    kept = choose(HOST, facts, wanted)
    assert steps(kept, facts, env.hash, (), wheelhouse=True) == []
    assert choose(HOST, facts, wanted, anew=True).stands is None
    gone = replace(env, usable=False)
    assert choose(HOST, host(more={"envs": (gone,)}), wanted).stands is None
    gpu = Gpu(index=0, model="x", memory=1, driver="580.1")
    assert choose(HOST, host(more={"envs": (env,)}, gpus=(gpu,)), wanted).stands is None
    assert choose(HOST, facts, asked("torch", "numpy")).stands is None


def test_the_steps_say_everything_that_will_be_done() -> None:
    """A Python is installed first, wheels are sent, the environment is named by its hash."""
    facts, wanted = host(None), asked()
    choice = choose(HOST, facts, wanted)
    env = name_of(choice.target, [PACKAGE], wanted)
    told = "\n".join(steps(choice, facts, env, [PACKAGE], wheelhouse=True, fan_out=True))
    assert "install Python 3.12 with uv" in told
    assert "1 wheels (105 MB) host to host" in told
    assert env in told
    assert env != name_of(replace(choice.target, build="cu128"), [PACKAGE], wanted)
    assert env != name_of(choice.target, [replace(PACKAGE, version="2.13.1")], wanted)


def test_too_little_room_is_said_before_anything_is_sent() -> None:
    """Four times the wheels' size must be free."""
    assert room_problem(HOST, host(disk_free=500 << 20), [PACKAGE]) is None
    problem = room_problem(HOST, host(disk_free=300 << 20), [PACKAGE])
    assert problem is not None
    assert "takes about 419 MB" in problem.message


def test_kind_system_names_what_is_missing() -> None:
    """Nothing is installed for it, so what is not there is a refusal."""
    facts = host()
    assert facts.python is not None
    facts = replace(facts, python=replace(facts.python, packages=("numpy 2.0", "torch 2.13.0")))
    assert system_problem(HOST, facts, asked("torch>=2", kind="system")) is None
    problem = system_problem(HOST, facts, asked("torch", "Some_Thing[x]>1", kind="system"))
    assert problem is not None
    assert "has no some-thing" in problem.message


def test_requirements_are_lines_that_mean_one_thing(tmp_path: Path) -> None:
    """Comments and continued lines are read as pip reads them; a file and a list are one request."""
    text = "# ours\ntorch>=2.6  # the engine\nnumpy==2.0 \\\n  --hash=sha256:" + "0" * 64 + "\n\n"
    (tmp_path / "r.txt").write_text(text)
    found = requirements_of(EnvSection(requirements="r.txt"), tmp_path)
    assert found is not None
    assert found.lines == ("torch>=2.6", "numpy==2.0 --hash=sha256:" + "0" * 64)
    assert found.key == asked(*reversed(found.lines)).key
    assert not found.locked
    assert asked(found.lines[1]).locked


@pytest.mark.parametrize(
    ("line", "told"),
    [("-e .", "`-e` can't be used"), ("./pkg.whl", "is no requirement"), ("pkg @ file:///x", "by URL"),
     ("--index-url https://u:p@x", "`--index-url` can't")],
)  # fmt: skip
def test_a_line_that_no_host_could_lock_is_refused_by_its_number(
    tmp_path: Path, line: str, told: str
) -> None:
    """File and line are named, and secrets of an index never repeated."""
    (tmp_path / "r.txt").write_text(f"torch\n\\\n{line}\n")
    with pytest.raises(ConfigError, match=told) as refused:
        requirements_of(EnvSection(requirements="r.txt"), tmp_path)
    assert "r.txt:2" in str(refused.value)
    assert "u:p" not in str(refused.value)


def test_in_the_tree_parents_come_first_and_nobody_has_more_than_two_children() -> None:
    """Each host once; what a host is told of its children is how many name it as their parent."""
    for count in range(1, 20):
        branches = tree([str(number) for number in range(count)])
        seen: set[str] = set()
        for branch in branches:
            assert branch.parent in seen or not seen
            seen.add(branch.name)
            named = sum(other.parent == branch.name for other in branches)
            assert branch.children == named <= 2
        assert len(seen) == count
