"""stores.yaml: private, strict, and silent about its secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmctl.errors import ConfigError, TransferError
from llmctl.storage.accounts import account, portable
from llmctl.storage.files import open_store


@pytest.fixture
def stores_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's file, empty and private."""
    path = tmp_path / "config" / "llmctl" / "stores.yaml"
    path.parent.mkdir(parents=True)
    path.touch(mode=0o600)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return path


def test_an_entry_is_found_by_its_name(stores_yaml: Path) -> None:
    """A scheme that is an entry's name means that entry; any other one its own kind, without values."""
    stores_yaml.write_text("ours: {type: s3, endpoint: 'http://rgw:7480', key: k, secret: s3cr3t}\n")
    assert account("ours").kind == "s3"
    assert account("ours").values == {"endpoint": "http://rgw:7480", "key": "k", "secret": "s3cr3t"}
    assert (account("hdfs").kind, dict(account("hdfs").values)) == ("hdfs", {})
    assert account("s3a").kind == "s3"


def test_a_secret_is_not_in_the_entrys_text(stores_yaml: Path) -> None:
    """Printing an entry, as a traceback or a log may, shows none of its values."""
    stores_yaml.write_text("s3: {key: k3y, secret: s3cr3t}\n")
    assert "k3y" not in repr(account("s3"))
    assert "s3cr3t" not in repr(account("s3"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_file_that_others_may_read_is_refused(stores_yaml: Path, mode: int) -> None:
    """Anything but 0600 or less is a ConfigError with the command that mends it."""
    stores_yaml.write_text("s3: {secret: s3cr3t}\n")
    stores_yaml.chmod(mode)
    with pytest.raises(ConfigError, match="others may read it") as caught:
        open_store("s3://bucket/x")
    assert caught.value.hint == f"chmod 600 {stores_yaml}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3: {secrt: s3cr3t}", "unknown key `secrt`"),
        ("ours: {type: nfs, secret: s3cr3t}", "type nfs"),
        ("ours: {secret: s3cr3t}", "type ours"),
        ("ours: s3cr3t", "wants keys below it"),
        ("s3: {secret: [s3cr3t]}", "wants one value"),
        ("ours: {type: hdfs}", "wants `host"),
        ("- s3cr3t", "wants named entries"),
        ("s3: {secret: 's3cr3t", "not YAML"),
    ],
)
def test_a_mistake_is_named_without_its_value(stores_yaml: Path, text: str, message: str) -> None:
    """The error says file, entry and key, and repeats no value: it could be the secret."""
    stores_yaml.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        account("ours" if text.startswith("ours") else "s3")
    assert str(stores_yaml) in str(caught.value)
    assert "s3cr3t" not in str(caught.value) + str(caught.value.hint)


def test_a_near_miss_is_suggested(stores_yaml: Path) -> None:
    """A mistyped key gets the nearest known one."""
    stores_yaml.write_text("s3: {secrt: x}")
    with pytest.raises(ConfigError) as caught:
        account("s3")
    assert caught.value.hint == "did you mean `secret`?"


def test_an_entry_travels_with_its_certificate(
    stores_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what the URIs name is sent; at the other end it wins, and the certificate is a file that lies on
    no disk."""
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n")
    stores_yaml.write_text(f"ours: {{type: s3, secret: s3cr3t, ca: {ca}}}\nother: {{type: s3, secret: x}}\n")
    sent = portable(["ours://bucket/data", "/local/path", "s3://bucket"])
    assert set(sent) == {"ours"}
    ca.unlink()
    stores_yaml.write_text("ours: {type: s3, secret: another, region: here}\n")
    monkeypatch.setenv("LLMCTL_STORES", json.dumps(sent))
    found = account("ours")
    assert (found.kind, found.values["secret"]) == ("s3", "s3cr3t")
    assert "region" not in found.values
    assert Path(found.values["ca"]).read_text().startswith("-----BEGIN CERTIFICATE-----\nMII")
    assert Path(found.values["ca"]).resolve().name.startswith("memfd:")


def test_a_certificate_that_is_not_there_is_named(stores_yaml: Path) -> None:
    """The entry and the file that it names, rather than a failure on the hosts."""
    stores_yaml.write_text("ours: {type: s3, ca: /nowhere/ca.pem}\n")
    with pytest.raises(ConfigError, match=r"ours: ca: /nowhere/ca\.pem: No such file"):
        portable(["ours://bucket/data"])
    stores_yaml.write_text(f"ours: {{type: s3, ca: {stores_yaml}}}\n")
    with pytest.raises(ConfigError, match="holds no certificate"):
        portable(["ours://bucket/data"])


@pytest.mark.parametrize("text", ["{s3cr3t", '["s3cr3t"]', '{"ours": {"type": "nfs", "secret": "s3cr3t"}}'])
def test_what_came_with_a_job_is_never_quoted(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that someone else filled is refused without its text."""
    monkeypatch.setenv("LLMCTL_STORES", text)
    with pytest.raises(ConfigError, match="LLMCTL_STORES") as caught:
        account("ours")
    assert "s3cr3t" not in str(caught.value)


def test_the_certificate_of_a_webhdfs_entry_holds(
    stores_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`~` is the home, and a REQUESTS_CA_BUNDLE of the environment does not take its place."""
    requests = pytest.importorskip("requests")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "other.pem"))
    stores_yaml.write_text("web: {type: webhdfs, host: 'nn:9871', https: true, ca: ~/own.pem}\n")
    asked = []

    def send(_self: object, _request: object, **settings: object) -> None:
        asked.append(settings["verify"])
        raise requests.exceptions.InvalidSchema("not sent")

    monkeypatch.setattr("requests.adapters.HTTPAdapter.send", send)
    with pytest.raises(TransferError, match="not sent"):
        open_store("web://x").list()
    assert asked == [str(tmp_path / "own.pem")]
