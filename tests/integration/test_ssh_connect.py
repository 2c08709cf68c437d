"""Dialling real sshds: identity, jumps, keys, and every way in which it can fail."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmctl.controller.config.types import Host
from llmctl.controller.transport.base import Transport
from llmctl.controller.transport.connect import SILENCE_S
from llmctl.controller.transport.hostkeys import offered_key, trust
from llmctl.controller.transport.pool import Connections
from llmctl.errors import (
    DeadlineError,
    HostIdentityError,
    HostUnreachableError,
    LlmctlError,
    NotFoundError,
    RemoteCommandError,
)
from tests.lab.hosts import Lab, make_key

pytestmark = pytest.mark.hosts
A, B = Host(name="a", addr="node0"), Host(name="b", addr="node1")


def hostname(connections: Connections, name: str) -> str:
    done = connections.get(name).run(["hostname"], deadline_s=20, stage="test")
    return done.stdout.decode().strip()


@pytest.fixture
def config(in_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ssh_config of the test's own, with its own copy of known_hosts."""
    known = tmp_path / "known_hosts"
    known.write_text(in_lab.known_hosts.read_text())
    text = in_lab.ssh_config.read_text().replace(str(in_lab.known_hosts), str(known))
    path = tmp_path / "ssh_config"
    path.write_text(text)
    monkeypatch.setenv("LLMCTL_SSH_CONFIG", str(path))
    return path


def server_pid(transport: Transport) -> str:
    """The process on the host that serves this connection: the parent of the shell around a command."""
    argv = ["sh", "-c", "ps -o ppid= -p $PPID"]
    return transport.run(argv, deadline_s=20, stage="test").stdout.decode().strip()


def failure(host: Host, *, timeout_s: float = 10.0) -> LlmctlError:
    """The error that connecting ends with; it has host, stage and one line."""
    with Connections([host], connect_timeout_s=timeout_s) as c, pytest.raises(LlmctlError) as caught:
        c.get(host.name)
    assert (caught.value.host, caught.value.stage) == (host.name, "connect")
    assert "\n" not in caught.value.line()
    return caught.value


def test_refused_port(in_lab: Lab) -> None:
    """A closed port is said to refuse, with the address."""
    error = failure(Host(name="a", addr="node0", port=2222))
    assert isinstance(error, HostUnreachableError)
    assert f"{in_lab.ips['node0']}:2222 refused" in error.message
    assert error.hint


def test_silent_host_ends_at_the_timeout(in_lab: Lab) -> None:
    """A partitioned host costs its timeout, not a TCP timeout of minutes."""
    in_lab.partition("node0")
    started = time.monotonic()
    error = failure(A, timeout_s=1.0)
    assert isinstance(error, HostUnreachableError)
    assert "did not answer in time" in error.message
    assert time.monotonic() - started < 15


def test_hung_host_ends_at_the_timeout(in_lab: Lab) -> None:
    """A frozen host accepts TCP but says nothing: the same timeout counts, and no thread stays behind."""
    before = threading.active_count()
    in_lab.freeze("node0")
    error = failure(A, timeout_s=1.0)
    assert "did not answer in time" in error.message
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_unknown_name(in_lab: Lab) -> None:
    """A name that does not resolve is named."""
    error = failure(Host(name="a", addr="no-such-host.invalid"))
    assert "no-such-host.invalid" in error.message


def hang_up(server: socket.socket) -> None:
    server.accept()[0].close()


def test_port_that_speaks_no_ssh(in_lab: Lab) -> None:
    """Something else on the port is an error of ours."""
    with socket.create_server(("10.77.0.1", 2022)) as server:
        thread = threading.Thread(target=hang_up, args=(server,), daemon=True)
        thread.start()
        error = failure(Host(name="a", addr="10.77.0.1", port=2022))
    assert isinstance(error, HostUnreachableError)


def test_no_accepted_key_names_those_tried(config: Path, tmp_path: Path) -> None:
    """The keys that were tried are in the message."""
    make_key(tmp_path / "stranger", "x")
    text = re.sub(r"IdentityFile .*", f"IdentityFile {tmp_path}/stranger", config.read_text())
    config.write_text(text)
    error = failure(A)
    assert isinstance(error, HostUnreachableError)
    assert f"accepted no key: tried {tmp_path}/stranger" in error.message


def test_encrypted_key_without_agent(config: Path, tmp_path: Path) -> None:
    """An encrypted key that no agent holds is named, and the hint is ssh-add."""
    key = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", key], check=True)
    config.write_text(re.sub(r"IdentityFile .*", f"IdentityFile {key}", config.read_text()))
    error = failure(A)
    assert f"{key} is encrypted" in error.message
    assert error.hint == f"ssh-add {key}"


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_key_kinds_log_in(in_lab: Lab, config: Path, tmp_path: Path, kind: str) -> None:
    """ECDSA and RSA keys are accepted too."""
    key = tmp_path / kind
    make_key(key, kind, kind=kind)
    authorized = in_lab.path("node0", "/home/trainer/.ssh/authorized_keys")
    before = authorized.read_text()
    authorized.write_text(before + key.with_suffix(".pub").read_text())
    try:
        with Connections([Host(name="a", addr="node0", user="trainer", identity_file=str(key))]) as c:
            assert c.get("a").run(["id", "-un"], deadline_s=20, stage="test").stdout == b"trainer\n"
    finally:
        authorized.write_text(before)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty ssh-agent."""
    sock = tmp_path / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", sock], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
        deadline = time.monotonic() + 10
        while not sock.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.usefixtures("agent")
def test_agent_signs_for_an_encrypted_key(in_lab: Lab, config: Path, tmp_path: Path) -> None:
    """A key file that is encrypted here is used through the agent that holds it."""
    key = tmp_path / "locked"
    key.write_text(in_lab.identity.read_text())
    key.chmod(0o600)
    Path(f"{key}.pub").write_text(in_lab.identity.with_suffix(".pub").read_text())
    subprocess.run(["ssh-add", "-q", key], check=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", key], check=True, capture_output=True
    )
    config.write_text(re.sub(r"IdentityFile .*", f"IdentityFile {key}", config.read_text()))
    with Connections([A]) as c:
        assert hostname(c, "a") == "node0"


def test_certificate_logs_in(in_lab: Lab, config: Path, tmp_path: Path) -> None:
    """A user certificate beside the key is offered, where the host trusts its CA."""
    ca, key = tmp_path / "ca", tmp_path / "user"
    make_key(ca, "ca")
    make_key(key, "user")
    subprocess.run(["ssh-keygen", "-q", "-s", ca, "-I", "me", "-n", "trainer", f"{key}.pub"], check=True)
    authorized = in_lab.path("node0", "/home/trainer/.ssh/authorized_keys")
    before = authorized.read_text()
    authorized.write_text("cert-authority " + ca.with_suffix(".pub").read_text())
    try:
        with Connections([Host(name="a", addr="node0", user="trainer", identity_file=str(key))]) as c:
            assert c.get("a").run(["id", "-un"], deadline_s=20, stage="test").stdout == b"trainer\n"
    finally:
        authorized.write_text(before)


def test_unknown_host_key_then_trusted(config: Path, tmp_path: Path) -> None:
    """Unknown: refused with the fingerprint; after trust it connects, and OpenSSH agrees."""
    (tmp_path / "known_hosts").write_text("")
    error = failure(A)
    assert isinstance(error, HostIdentityError)
    key = offered_key(A)
    assert key.fingerprint_sha256 in error.message
    assert error.hint is not None
    assert "llmctl hosts trust a" in error.hint
    assert trust(A, key) == tmp_path / "known_hosts"
    with Connections([A]) as c:
        assert hostname(c, "a") == "node0"


def test_changed_host_key(in_lab: Lab, config: Path) -> None:
    """A reinstalled host is refused with both fingerprints until it is trusted with replace."""
    known = offered_key(B)
    in_lab.kill("node1")
    in_lab.start("node1", new_key=True)
    error = failure(B)
    assert isinstance(error, HostIdentityError)
    offered = offered_key(B)
    assert f"known {known.fingerprint_sha256}, offered {offered.fingerprint_sha256}" in error.message
    with pytest.raises(HostIdentityError):
        trust(B, offered)
    trust(B, offered, replace=True)
    with Connections([B]) as c:
        assert hostname(c, "b") == "node1"


def test_second_key_type_is_no_change(in_lab: Lab, config: Path, tmp_path: Path) -> None:
    """Where the host has several keys, the one that is known is asked for."""
    make_key(tmp_path / "rsa", "x", kind="rsa")
    in_lab.path("node0", "/etc/ssh/second").write_text((tmp_path / "rsa").read_text())
    in_lab.path("node0", "/etc/ssh/second").chmod(0o600)
    argv = ["/usr/sbin/sshd", "-p", "2200", "-o", "HostKey=/etc/ssh/second", "-o", "PidFile=/run/second.pid"]
    in_lab.on_host("node0", argv, check=True)
    try:
        ip = in_lab.ips["node0"]
        public = (tmp_path / "rsa.pub").read_text().split()
        (tmp_path / "known_hosts").write_text(f"[{ip}]:2200 {public[0]} {public[1]}\n")
        with Connections([Host(name="a", addr="node0", port=2200)]) as c:
            assert hostname(c, "a") == "node0"
    finally:
        pid = in_lab.path("node0", "/run/second.pid").read_text().strip()
        in_lab.on_host("node0", ["kill", pid], check=True)


def test_through_a_jump_host(in_lab: Lab) -> None:
    """A host that only the jump host reaches, named by inventory entry, by address and by the config."""
    in_lab.partition("node1", between="ctl")
    by_name = Host(name="b", addr="node1", proxy_jump="a")
    by_address = Host(name="b2", addr="node1", proxy_jump=f"root@{in_lab.ips['node0']}:22")
    with Connections([A, by_name, by_address]) as c:
        assert hostname(c, "b") == "node1"
        assert hostname(c, "b2") == "node1"
        data = os.urandom(4 << 20)
        assert c.get("b").run(["cat"], stdin=data, deadline_s=60, stage="test").stdout == data


def test_jump_host_that_can_not_reach_it(in_lab: Lab) -> None:
    """The error is about the far host and says that the jump host failed."""
    error = failure(Host(name="b", addr="node1", port=2222, proxy_jump="root@node0"))
    assert "the jump host could not connect" in error.message


def test_included_config(in_lab: Lab, config: Path, tmp_path: Path) -> None:
    """A host that an included file describes is dialled as it says."""
    (tmp_path / "extra.conf").write_text(f"Host far-away\n HostName {in_lab.ips['node1']}\n")
    config.write_text(f"Include {tmp_path}/*.conf\n{config.read_text()}")
    with Connections([Host(name="x", addr="far-away")]) as c:
        assert hostname(c, "x") == "node1"


def test_each_host_has_its_own_result(in_lab: Lab) -> None:
    """One silent host delays nobody's result by more than its timeout, and hides none."""
    in_lab.partition("node1")
    refused = Host(name="r", addr="node0", port=2222)
    with Connections([A, B, refused], connect_timeout_s=2.0) as c:
        results = c.each([A, B, refused], lambda h: hostname(c, h.name))
    assert list(results) == ["a", "b", "r"]
    assert results["a"] == "node0"
    assert isinstance(results["b"], HostUnreachableError)
    assert isinstance(results["r"], HostUnreachableError)


def test_one_connection_per_host_and_a_new_one_when_lost(in_lab: Lab) -> None:
    """`get` gives the same connection to all threads, and another after the host came back."""
    with Connections([A]) as c:
        first = c.get("a")
        assert c.get("a") is first
        in_lab.kill("node0")
        with pytest.raises(HostUnreachableError):
            first.run(["true"], deadline_s=20, stage="test")
        in_lab.start("node0")
        assert c.get("a") is not first
        assert hostname(c, "a") == "node0"


def test_host_not_in_the_pool(in_lab: Lab) -> None:
    """An unknown name is named."""
    with Connections([A]) as c, pytest.raises(NotFoundError, match="zzz"):
        c.get("zzz")


def test_sshd_killed_under_a_command(in_lab: Lab) -> None:
    """A connection that ends mid-command is unreachable, promptly, never an exit status."""
    with Connections([A]) as c:
        transport = c.get("a")
        kill = ["kill", "-9", server_pid(transport)]
        threading.Timer(0.3, in_lab.on_host, ("node0", kill)).start()
        started = time.monotonic()
        with pytest.raises(HostUnreachableError) as caught:
            transport.run(["sleep", "120"], deadline_s=100, stage="launch")
        assert time.monotonic() - started < 60
    assert (caught.value.host, caught.value.stage) == ("a", "launch")


def test_killed_shell_is_no_lost_connection(in_lab: Lab) -> None:
    """Where even the wrapping shell is killed, the error says so and the connection goes on."""
    with Connections([A]) as c:
        script = "kill -9 $PPID; sleep 5"
        with pytest.raises(RemoteCommandError, match="shell was killed"):
            c.get("a").run(["sh", "-c", script], deadline_s=30, stage="test")
        assert hostname(c, "a") == "node0"


def test_partition_under_a_command_ends_at_its_deadline(in_lab: Lab) -> None:
    """A cut cable under a read and under a large write: both end at their deadline."""
    with Connections([A]) as c:
        transport = c.get("a")
        with transport.open(["cat"], stage="push") as stream:
            in_lab.partition("node0")
            started = time.monotonic()
            with pytest.raises((DeadlineError, HostUnreachableError)):
                stream.read(1, deadline_s=0.5)
            with pytest.raises((DeadlineError, HostUnreachableError)):
                stream.write(b"x" * (64 << 20), deadline_s=1.0)
            assert time.monotonic() - started < SILENCE_S


def test_frozen_host_under_a_command_ends_at_its_deadline(in_lab: Lab) -> None:
    """A hung host answers nothing: opening a command ends at the deadline."""
    with Connections([A]) as c:
        transport = c.get("a")
        in_lab.freeze("node0")
        with pytest.raises(DeadlineError):
            transport.run(["true"], deadline_s=0.7, stage="probe")
        in_lab.thaw("node0")
        assert hostname(c, "a") == "node0"


def test_cut_write_leaves_no_connection_that_lies(in_lab: Lab) -> None:
    """After a write that ended inside a packet the connection is given up and made anew."""
    with Connections([A]) as c:
        first = c.get("a")
        server = server_pid(first)
        with first.open(["sleep", "60"], stage="push") as stream:
            in_lab.on_host("node0", ["kill", "-STOP", server], check=True)
            with pytest.raises((DeadlineError, HostUnreachableError)):
                stream.write(b"x" * (64 << 20), deadline_s=1.0)
        in_lab.on_host("node0", ["kill", "-CONT", server], check=True)
        assert hostname(c, "a") == "node0"
