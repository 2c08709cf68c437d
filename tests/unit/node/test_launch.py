"""A NodeSpec as command lines and environments: values in, values out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from llmctl.node import launch
from llmctl.node.procs import ProcRef
from llmctl.wire import environment
from llmctl.wire.specs import DataSource, LaunchSpec, NodeSpec, Peer

AGENT = ProcRef(pid=42, start="777")


def spec(**changes: Any) -> NodeSpec:
    """Node 1 of two, four ranks each."""
    base = LaunchSpec(
        launcher="torchrun",
        python="/opt/py",
        command=("train.py", "--lr", "1 e"),
        nnodes=2,
        node_rank=1,
        nproc=4,
        world_size=8,
        first_rank=4,
        master_addr="10.0.0.1",
        master_port=41873,
        interface="eth1",
        pg_timeout_s=30.0,
    )
    fields = {field.name for field in dataclasses.fields(LaunchSpec)}
    whole = NodeSpec(
        run_id="demo-0a1b",
        run_name="demo",
        host="b",
        attempt=2,
        created_at=0.0,
        workdir="/w",
        launch=dataclasses.replace(base, **{k: v for k, v in changes.items() if k in fields}),
        peers=(Peer(host="a", addr="10.0.0.1", node_rank=0, nproc=4, first_rank=0),),
        agent="abc",
    )
    return dataclasses.replace(whole, **{k: v for k, v in changes.items() if k not in fields})


def env(one: NodeSpec, host_env: dict[str, str] | None = None, **secrets: str) -> dict[str, str]:
    return launch.job_environment(one, host_env=host_env or {}, secrets=secrets, cores=16)


def test_torchrun_line_is_a_static_rendezvous_around_the_shim() -> None:
    """The whole command line, as it runs."""
    assert launch.torchrun_command(spec(), AGENT) == (
        *("/opt/py", "-u", "-m", "torch.distributed.run"),
        *("--nnodes", "2", "--node-rank", "1", "--nproc-per-node", "4"),
        *("--max-restarts", "0", "--monitor-interval", "0.1"),
        *("--rdzv-backend", "static", "--rdzv-id", "demo-0a1b-2"),
        *("--master-addr", "10.0.0.1", "--master-port", "41873"),
        *("--log-dir", "/w/runs/demo-0a1b/attempt-2/torchelastic", "--no-python"),
        *("/opt/py", "-I", "-S", "/w/agent/abc.pyz", "rank", "42", "777"),
        *("/opt/py", "-u", "train.py", "--lr", "1 e"),
    )


def test_only_the_allow_list_of_the_host_is_kept() -> None:
    """PATH, locale, devices and the way to the host's own stores pass; whatever else the login shell exports
    does not."""
    host_env = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "0",
        "AWS_PROFILE": "lab",
        "HADOOP_CONF_DIR": "/etc/hadoop",
        "SSH_CLIENT": "x",
        "OMP_NUM_THREADS": "9",
    }
    kept = {name: value for name, value in host_env.items() if value not in ("x", "9")}
    assert launch.clean(host_env) == kept


def test_the_job_wins_over_the_host_and_the_contract_over_the_job() -> None:
    """`env` overrides the host's PATH and our thread count, but can't forge the run id."""
    own = {"PATH": "/mine", "OMP_NUM_THREADS": "2", environment.RUN_ID: "forged", "PYTHONPATH": "/lib"}
    found = env(spec(env=own), {"PATH": "/bin"}, WORD="s")
    assert (found["PATH"], found["OMP_NUM_THREADS"], found["WORD"]) == ("/mine", "2", "s")
    assert found[environment.RUN_ID] == "demo-0a1b"
    assert found["PYTHONPATH"] == "/w/agent/abc/llmctl/worker/startup:/lib:/w/agent/abc"


@pytest.mark.parametrize(("nproc", "threads"), [(1, "16"), (4, "4"), (6, "2")])
def test_threads_are_shared_by_the_ranks(nproc: int, threads: str) -> None:
    """OMP_NUM_THREADS is cores / local ranks."""
    assert env(spec(nproc=nproc, first_rank=0))["OMP_NUM_THREADS"] == threads


def test_more_ranks_than_cores_have_one_thread_each() -> None:
    """Never zero, which OpenMP would read as all cores."""
    found = launch.job_environment(spec(), host_env={}, secrets={}, cores=2)
    assert found["OMP_NUM_THREADS"] == "1"


def test_the_interface_is_set_for_every_library_or_none() -> None:
    """Gloo, NCCL and TensorPipe use the given interface; without one they choose."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
    assert [env(spec())[name] for name in names] == ["eth1"] * 3
    assert not set(names) & set(env(spec(interface=None)))


def test_every_documented_name_is_given_or_optional() -> None:
    """A rank finds every name of wire/environment.py that the agent is to set."""
    mix = (DataSource(uri="/a", weight=2.0), DataSource(uri="s3://b/c"))
    found = set(launch.contract(spec(data_uri="file:///d"))) | set(launch.contract(spec(data_mix=mix)))
    assert set(environment.MEANING) - found <= {
        environment.BACKEND,
        environment.STORES,
        environment.INFER_TOKEN,
        environment.INFER_API_KEY,
    }


def test_a_direct_rank_is_told_its_place() -> None:
    """Local rank 3 of node 1 is global rank 7 of 8."""
    found = launch.rank_environment(spec(), 3)
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"]) == ("7", "3", "8")
    assert "TORCHELASTIC_USE_AGENT_STORE" not in found


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"launcher": "mpirun"}, "mpirun"), ({"command": ()}, "command"), ({"first_rank": 5}, "world of 8")],
)
def test_what_cannot_be_launched_is_named(changes: dict[str, Any], word: str) -> None:
    """A wrong launcher, no command, or ranks outside of the world are refused before anything starts."""
    problem = launch.check(spec(**changes).launch)
    assert problem is not None
    assert word in problem
    assert launch.check(spec().launch) is None
