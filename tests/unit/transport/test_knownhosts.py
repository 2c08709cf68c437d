"""known_hosts is read as OpenSSH reads it: ssh-keygen makes the files and the fingerprints."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.controller.transport.knownhosts import OfferedKey, check, known_types, trust
from llmctl.controller.transport.sshconfig import SshTarget
from llmctl.errors import HostIdentityError


def make_key(folder: Path, kind: str = "ed25519") -> OfferedKey:
    path = folder / f"key-{len(list(folder.iterdir()))}"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path], check=True)
    fields = path.with_suffix(".pub").read_text().split()
    return OfferedKey(type=fields[0], base64=fields[1])


def target(known: Path, *, hostname: str = "10.0.0.2", port: int = 22, alias: str | None = None) -> SshTarget:
    return SshTarget(
        name="b",
        hostname=hostname,
        port=port,
        user="me",
        identity_files=(),
        identities_only=False,
        use_agent=False,
        certificate_file=None,
        known_hosts=(known,),
        global_known_hosts=(),
        host_key_alias=alias,
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[OfferedKey, OfferedKey, OfferedKey]:
    """Two ed25519 keys and an ecdsa one."""
    folder = tmp_path_factory.mktemp("keys")
    return make_key(folder), make_key(folder), make_key(folder, "ecdsa")


@pytest.fixture
def known(tmp_path: Path) -> Path:
    return tmp_path / "known_hosts"


Keys = tuple[OfferedKey, OfferedKey, OfferedKey]


def test_fingerprint_is_openssh_s(tmp_path: Path) -> None:
    """The fingerprint is the one that `ssh-keygen -l` shows."""
    key = make_key(tmp_path)
    shown = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "key-0.pub"], capture_output=True, text=True, check=True
    )
    assert key.fingerprint_sha256 == shown.stdout.split()[1]


@pytest.mark.parametrize(
    ("names", "where"),
    [
        ("10.0.0.2", {}),
        ("other,10.0.0.2", {}),
        ("10.0.0.*", {}),
        ("[10.0.0.2]:2222", {"port": 2222}),
        ("[10.0.0.?]:2222", {"port": 2222}),
        ("Node-B", {"hostname": "node-b"}),
        ("rack7", {"alias": "rack7", "port": 2222}),
    ],
)
def test_known_key_passes(known: Path, keys: Keys, names: str, where: dict[str, object]) -> None:
    """Plain names, lists, patterns, ports and aliases find their key."""
    known.write_text(f"# mine\n\nbroken line\n{names} {keys[0].line} comment\n")
    check(target(known, **where), keys[0])  # type: ignore[arg-type]
    with pytest.raises(HostIdentityError):
        check(target(known, **where), keys[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("port", [22, 2222])
def test_hashed_names(known: Path, keys: Keys, port: int) -> None:
    """A file that ssh-keygen hashed is understood."""
    name = "10.0.0.2" if port == 22 else f"[10.0.0.2]:{port}"
    known.write_text(f"{name} {keys[0].line}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
    assert "10.0.0.2" not in known.read_text()
    check(target(known, port=port), keys[0])
    with pytest.raises(HostIdentityError, match="changed"):
        check(target(known, port=port), keys[1])


@pytest.mark.parametrize("names", ["10.0.0.3", "!10.0.0.2,10.0.0.*", "[10.0.0.2]:2222", "10.0.0.22"])
def test_other_hosts_lines_do_not_count(known: Path, keys: Keys, names: str) -> None:
    """A key known for another name, port, or excluded by `!` is unknown here."""
    known.write_text(f"{names} {keys[0].line}\n")
    with pytest.raises(HostIdentityError, match="is unknown"):
        check(target(known), keys[0])


def test_unknown_key_shows_how_to_trust_it(known: Path, keys: Keys) -> None:
    """The error has the host, the fingerprint and the command."""
    with pytest.raises(HostIdentityError) as caught:
        check(target(known), keys[0])
    assert keys[0].fingerprint_sha256 in caught.value.line()
    assert "llmctl hosts trust b" in (caught.value.hint or "")


def test_changed_key_shows_both(known: Path, keys: Keys) -> None:
    """Known and offered fingerprint, and the command for a reinstalled machine."""
    known.write_text(f"10.0.0.2 {keys[0].line}\n")
    with pytest.raises(HostIdentityError) as caught:
        check(target(known), keys[1])
    line = caught.value.line()
    assert f"known {keys[0].fingerprint_sha256}, offered {keys[1].fingerprint_sha256}" in line
    assert "llmctl hosts trust b --replace" in (caught.value.hint or "")


def test_revoked_key_is_refused_even_if_listed(known: Path, keys: Keys) -> None:
    """@revoked beats a line that lists the same key."""
    known.write_text(f"@revoked * {keys[0].line}\n10.0.0.2 {keys[0].line}\n")
    with pytest.raises(HostIdentityError, match="revoked"):
        check(target(known), keys[0])


def test_known_types_are_asked_for(known: Path, keys: Keys) -> None:
    """The types in the file, in its order, are what the server is asked for first."""
    known.write_text(f"10.0.0.2 {keys[2].line}\n10.0.0.2 {keys[0].line}\n")
    assert known_types(target(known)) == ["ecdsa-sha2-nistp256", "ssh-ed25519"]


def test_trust_adds_a_private_file(known: Path, keys: Keys) -> None:
    """trust writes a line that OpenSSH finds, in a file that only we read."""
    known.write_text("# mine\n")
    known.chmod(0o644)
    trust(target(known, port=2222), keys[0])
    assert known.stat().st_mode & 0o777 == 0o600
    assert known.read_text().startswith("# mine\n")
    found = subprocess.run(
        ["ssh-keygen", "-F", "[10.0.0.2]:2222", "-f", known], capture_output=True, check=False
    )
    assert found.returncode == 0
    check(target(known, port=2222), keys[0])


def test_trust_never_replaces_by_itself(known: Path, keys: Keys) -> None:
    """A changed key needs `replace`, which keeps the other names of the old line."""
    known.write_text(f"10.0.0.2,other {keys[0].line}\n10.0.0.9 {keys[2].line}\n")
    with pytest.raises(HostIdentityError, match="changed"):
        trust(target(known), keys[1])
    trust(target(known), keys[1], replace=True)
    check(target(known), keys[1])
    with pytest.raises(HostIdentityError, match="changed"):
        check(target(known), keys[0])
    check(target(known, hostname="other"), keys[0])
    check(target(known, hostname="10.0.0.9"), keys[2])


def test_trust_keeps_a_link(known: Path, keys: Keys, tmp_path: Path) -> None:
    """A known_hosts that is a link into a dotfiles folder stays one."""
    (tmp_path / "dotfiles").mkdir()
    (tmp_path / "dotfiles/known").write_text("")
    known.symlink_to(tmp_path / "dotfiles/known")
    trust(target(known), keys[0])
    assert known.is_symlink()
    assert keys[0].base64 in (tmp_path / "dotfiles/known").read_text()


def test_a_pinned_key_is_recognised_at_a_new_address_only(known: Path, keys: Keys) -> None:
    """DHCP gave the host another IP: same key, same host. A line that says otherwise wins over the pin."""
    mine, other, _ = keys
    pinned = replace(target(known), pinned_key=mine.line)
    check(pinned, mine)
    assert known_types(pinned) == [mine.type]
    with pytest.raises(HostIdentityError, match="unknown"):
        check(pinned, other)
    trust(pinned, other)
    with pytest.raises(HostIdentityError, match="changed"):
        check(pinned, mine)
