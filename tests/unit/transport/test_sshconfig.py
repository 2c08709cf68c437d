"""hosts.yaml over ~/.ssh/config gives what `ssh -G` would."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmctl.controller.config.types import Host
from llmctl.controller.transport.sshconfig import CONFIG_ENV, resolve
from llmctl.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own home with an empty ~/.ssh."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(CONFIG_ENV, raising=False)
    (tmp_path / ".ssh").mkdir()
    return tmp_path


def write(home: Path, text: str, name: str = "config") -> Path:
    path = home / ".ssh" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_defaults(home: Path) -> None:
    """Without any config: port 22, own user name, the usual keys that exist, the usual known_hosts."""
    write(home, "key", "id_rsa")
    target = resolve(Host(name="a", addr="10.0.0.1"))
    assert (target.hostname, target.port, target.jumps) == ("10.0.0.1", 22, ())
    assert target.identity_files == (home / ".ssh/id_rsa",)
    assert target.known_hosts[0] == home / ".ssh/known_hosts"
    assert target.known_name == "10.0.0.1"


def test_hosts_yaml_wins(home: Path) -> None:
    """user, port and identity_file of hosts.yaml come before the config's; its keys are tried after."""
    write(home, "Host a\n HostName 10.0.0.1\n User them\n Port 2200\n IdentityFile ~/.ssh/theirs\n")
    write(home, "", "theirs")
    mine = write(home, "", "mine")
    target = resolve(Host(name="a", addr="a", user="me", port=2222, identity_file="~/.ssh/mine"))
    assert (target.hostname, target.user, target.port) == ("10.0.0.1", "me", 2222)
    assert target.identity_files == (mine, home / ".ssh/theirs")
    assert target.known_name == "[10.0.0.1]:2222"


def test_include_with_globs_and_nesting(home: Path) -> None:
    """Included files count at their place, relative to ~/.ssh, and their blocks end with them."""
    write(home, "Include conf.d/*.conf\nUser late\nHost a\n Port 1\n")
    write(home, "Host a\n User early\n Include deeper\n", "conf.d/1.conf")
    write(home, "Port 2200\n", "deeper")
    write(home, "Host zzz\n Port 9\n", "conf.d/2.conf")
    target = resolve(Host(name="a", addr="a"))
    assert (target.user, target.port) == ("early", 2200)
    assert resolve(Host(name="b", addr="b")).user == "late"


def test_include_below_another_host_does_not_count(home: Path) -> None:
    """An Include inside a Host block is for that host only."""
    write(home, "Host other !a\n Include more\nHost *\n User me\n")
    write(home, "User wrong\n", "more")
    assert resolve(Host(name="a", addr="a")).user == "me"
    assert resolve(Host(name="other", addr="other")).user == "wrong"


def test_match_and_tokens(home: Path) -> None:
    """Match host and %-tokens are understood, several known_hosts files too."""
    text = "Match host a\n User m\nHost *\n UserKnownHostsFile ~/.ssh/kh_%h /k2\n HostKeyAlias same\n"
    write(
        home, text + " GlobalKnownHostsFile none\n IdentitiesOnly yes\n CertificateFile ~/.ssh/c-cert.pub\n"
    )
    target = resolve(Host(name="a", addr="a"))
    assert (target.user, target.identities_only, target.known_name) == ("m", True, "same")
    assert target.known_hosts == (home / ".ssh/kh_a", Path("/k2"))
    assert target.global_known_hosts == ()
    assert target.certificate_file == home / ".ssh/c-cert.pub"


def test_environment_names_the_only_config(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLMCTL_SSH_CONFIG is read instead of ~/.ssh/config; one that is missing is an error."""
    write(home, "User nobody\n")
    monkeypatch.setenv(CONFIG_ENV, str(write(home, "Host a\n User ci\n", "ci")))
    assert resolve(Host(name="a", addr="a")).user == "ci"
    monkeypatch.setenv(CONFIG_ENV, str(home / "nope"))
    with pytest.raises(ConfigError, match="nope"):
        resolve(Host(name="a", addr="a"))


def test_jumps(home: Path) -> None:
    """A chain from the config; hosts.yaml may name an inventory entry or user@addr:port, or `none`."""
    write(home, "Host far\n ProxyJump one,two\nHost one\n ProxyJump zero\nHost zero\n HostName 10.9.9.9\n")
    assert [t.hostname for t in resolve(Host(name="f", addr="far")).jumps] == ["10.9.9.9", "one", "two"]
    named = Host(name="x", addr="10.0.0.5", proxy_jump="bastion")
    (jump,) = resolve(named, peers={"bastion": Host(name="bastion", addr="1.2.3.4", user="jumper")}).jumps
    assert (jump.hostname, jump.user) == ("1.2.3.4", "jumper")
    (jump,) = resolve(Host(name="x", addr="far", proxy_jump="u@[fe80::1]:2022")).jumps
    assert (jump.user, jump.hostname, jump.port) == ("u", "fe80::1", 2022)
    assert resolve(Host(name="x", addr="far", proxy_jump="none")).jumps == ()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("Host a\n ProxyJump b\nHost b\n ProxyJump a\n", "never end"),
        ("Host a\n ProxyCommand nc %h %p\n", "ProxyCommand"),
        ("Include config\n", "too deeply"),
        ("Host a\n ProxyJump @:\n", "no jump host"),
        ("nonsense\n", "ssh config"),
    ],
)
def test_what_can_not_work_is_said(home: Path, config: str, message: str) -> None:
    """A config that llmctl can't follow is one clear error, never half followed."""
    write(home, config)
    with pytest.raises(ConfigError, match=message):
        resolve(Host(name="a", addr="a"))


def test_missing_identity_file(home: Path) -> None:
    """hosts.yaml naming a key that isn't there is said before anything is dialled."""
    with pytest.raises(ConfigError, match="no identity file at"):
        resolve(Host(name="a", addr="a", identity_file="~/.ssh/nope"))
