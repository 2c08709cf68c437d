"""YAML files: strict, YAML 1.2, and every error says where."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.controller.config.yamlfile import parse_scalar, parse_yaml, read_yaml
from llmctl.errors import ConfigError


def message(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "job.yaml")
    return caught.value.line()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("22:22", "22:22"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("1e-3", 1e-3),
        ("3.", 3.0),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("True", True),
        ("~", None),
        ("", None),
        ("-.inf", float("-inf")),
        ("127.0.0.1", "127.0.0.1"),
        ("9" * 5000, float("inf")),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    """Plain scalars mean what YAML 1.2 says, not what PyYAML's 1.1 rules say."""
    assert parse_scalar(text) == value
    assert type(parse_scalar(text)) is type(value)


def test_quoted_scalars_stay_text() -> None:
    """Quotes make text of what would be a number, a bool or nothing."""
    assert parse_yaml("a: '1'\nb: \"true\"\nc: ''", "x").data == {"a": "1", "b": "true", "c": ""}


def test_every_place_knows_its_line() -> None:
    """Keys and list items are found by the line in which they were written."""
    document = parse_yaml("a: 1\nb:\n  - x\n  - c: 2\n", "job.yaml")
    assert document.where(("b", 1, "c")) == "job.yaml:4"
    assert document.where(("b", 0)) == "job.yaml:3"
    assert document.where(("b", 1, "missing")) == "job.yaml:4"


def test_merge_keys_keep_the_own_value() -> None:
    """`<<` fills in what the mapping lacks and never replaces what it has; errors point at the own line."""
    document = parse_yaml("d: &d {p: 1, q: 2}\nh:\n  <<: *d\n  p: 3\n", "x")
    assert document.data["h"] == {"p": 3, "q": 2}
    assert document.where(("h", "p")) == "x:4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "job.yaml:3: key `a` is already set in line 1"),
        ("a:\n  - [1\n", "job.yaml:3:1: not YAML"),
        ("a:\n\t- b", "job.yaml:2:1: not YAML"),
        ("a: *nowhere", "job.yaml:1:4: not YAML"),
        ("---\na: 1\n---\nb: 2", "job.yaml:3:1: not YAML: found another document"),
        ("a: !include x", "job.yaml:1: the tag `!include` has no meaning here"),
        ("a: !!python/object/apply:os.system [ls]", "job.yaml:1: the tag"),
        ("? [a]\n: 1", "job.yaml:1: a key must be text"),
        ("a: \x01", "job.yaml: not YAML"),
        ("", "job.yaml: the file is empty"),
        ("# only a comment\n", "job.yaml: the file is empty"),
    ],
)
def test_bad_text_is_one_line_with_its_place(text: str, expected: str) -> None:
    """Whatever is wrong with a file is told in one line that starts with file and line."""
    told = message(text)
    assert told.startswith(expected)
    assert "\n" not in told


def test_aliases_can_neither_loop_nor_explode() -> None:
    """An alias inside itself and a text that expands to billions of values are refused at once."""
    assert "too many" in message("a: &a [*a]")
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 12))
    assert "too many" in message(bomb)


def test_files_that_are_none(tmp_path: Path) -> None:
    """A missing file, a folder and a file that is not UTF-8 are three different messages."""
    (tmp_path / "latin.yaml").write_bytes("ä: 1\nö: 2".encode("latin-1"))
    for name, expected in [
        ("none", "does not exist"),
        (".", "is a folder"),
        ("latin.yaml", "latin.yaml:1: not UTF-8"),
    ]:
        with pytest.raises(ConfigError, match=expected):
            read_yaml(tmp_path / name)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    """A file from a Windows editor loads like any other."""
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfversion: 1\r\nname: x\r\n")
    assert read_yaml(tmp_path / "bom.yaml").data == {"version": 1, "name": "x"}


@given(st.text(max_size=200))
def test_no_text_makes_another_error(text: str) -> None:
    """Any text at all either parses or is a ConfigError in one line: never a traceback."""
    told = ""
    try:
        parse_yaml(text, "job.yaml")
    except ConfigError as error:
        told = error.line()
    assert "\n" not in told
