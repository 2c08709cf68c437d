"""What goes into a corpus: every form of input, cut for many workers, and what is wrong with it."""

from __future__ import annotations

import gzip
import itertools
import json
import secrets
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmctl.errors import ConfigError, IntegrityError, LlmctlError, NotFoundError
from llmctl.storage.corpus import documents as reading
from llmctl.storage.corpus import sources as cutting
from llmctl.storage.corpus.documents import documents, pieces
from llmctl.storage.corpus.sources import Kind, Slice, SourceFile, expand, units
from llmctl.storage.files import open_store

TEXTS = [
    "plain",
    "naïve — 日本語 🙂",
    "odd\u2028new\x0blines\x85\r in\ntext",
    "x" * 30_000,
    '"quoted" \\ \0 zero',
    "end",
]


def write_jsonl(path: Path, texts: list[str], newline: str = "\n", **more: Any) -> Path:
    """Lines with the keys id and text; ends with a newline."""
    rows = [
        json.dumps({"id": i, "text": text, **more}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)
    ]
    path.write_bytes(newline.join([*rows, ""]).encode())
    return path


def cut(file: SourceFile, size: int, field: str = "text") -> list[reading.Piece]:
    """All pieces of a file that is cut every `size` bytes."""
    borders = [*range(0, file.size, size), file.size]
    parts = [Slice(file=file, start=a, end=b, bytes=b - a) for a, b in itertools.pairwise(borders)]
    return [piece for part in parts for piece in pieces(part, field)]


def only(source: Path) -> SourceFile:
    """The one file that `source` is."""
    (file,) = expand([str(source)])
    return file


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n \n"])
def test_json_lines_give_each_text_exactly(tmp_path: Path, newline: str) -> None:
    """Unicode, odd separators in a text, CRLF, empty lines and huge lines: the texts come back exactly."""
    assert list(documents([str(write_jsonl(tmp_path / "a.jsonl", TEXTS, newline))])) == TEXTS


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000, 29_999, 10**6])
def test_json_lines_cut_anywhere_are_each_read_once(tmp_path: Path, size: int) -> None:
    """Wherever a file is cut, each line belongs to exactly one slice."""
    path = write_jsonl(tmp_path / "a.jsonl", [*TEXTS[:3], *"abc"] if size < 64 else TEXTS)
    whole = [piece.text for piece in cut(only(path), 10**9)]
    assert [piece.text for piece in cut(only(path), size)] == whole
    assert len(whole) >= 6


def test_last_line_needs_no_newline_and_a_bom_is_no_text(tmp_path: Path) -> None:
    """A file without a final newline, and one with a byte order mark, are read whole."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n{"text": "two"}')
    assert list(documents([str(path)])) == ["one", "two"]


@given(data=st.binary(max_size=400), size=st.integers(1, 50))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_text_cut_anywhere_is_whole(tmp_path: Path, data: bytes, size: int) -> None:
    """Any file cut at any size: its pieces joined are its bytes, and one begins and one ends it."""
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    got = cut(only(path), size)
    assert "".join(piece.text for piece in got).encode("utf-8", "surrogateescape") == data
    assert [piece.begins for piece in got] == [i == 0 for i in range(len(got))]
    assert [piece.ends for piece in got] == [i == len(got) - 1 for i in range(len(got))]


def test_a_large_text_is_cut_behind_a_line_and_between_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut lies behind a line end where one is near, and never inside a character."""
    monkeypatch.setattr(reading, "_LOOK_AHEAD", 40)
    path = tmp_path / "a.txt"
    path.write_text("a line of text\n" * 20 + "日本語" * 60, encoding="utf-8")
    texts = [piece.text for piece in cut(only(path), 50)]
    assert "".join(texts) == path.read_text(encoding="utf-8")
    assert all(text.endswith("\n") for text in texts[:5])
    assert not any("\udc80" <= char <= "\udcff" for text in texts for char in text)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("unit", [10, 50_000])
def test_compressed_is_as_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, unit: int
) -> None:
    """.gz (several members) and .zst (several frames), lines and text, hold what the plain files hold."""
    monkeypatch.setattr(reading, "UNIT_BYTES", unit)
    monkeypatch.setattr(reading, "_LOOK_AHEAD", max(4, unit // 10))
    pack = gzip.compress if suffix == "gz" else zstandard.ZstdCompressor().compress
    for name in ("a.jsonl", "b.txt"):
        plain = write_jsonl(tmp_path / name, TEXTS).read_bytes()
        (tmp_path / f"{name}.{suffix}").write_bytes(pack(plain[:777]) + pack(plain[777:]))
        expected = list(documents([str(tmp_path / name)]))
        assert list(documents([str(tmp_path / f"{name}.{suffix}")])) == expected
        assert expected


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_archive_names_its_file(tmp_path: Path, suffix: str, damage: str) -> None:
    """A cut or altered compressed file is an IntegrityError; its readable part is not taken for all of it."""
    pack = gzip.compress if suffix == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    lines = "".join(json.dumps({"text": secrets.token_hex(500)}) + "\n" for _ in range(200))
    packed = bytearray(pack(lines.encode()))
    if damage == "cut":
        del packed[len(packed) // 2 :]
    else:
        packed[len(packed) // 2] ^= 0x10
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(packed)
    with pytest.raises(IntegrityError, match=rf"a\.jsonl\.{suffix}"):
        list(documents([str(path)]))


def test_parquet_gives_its_rows(tmp_path: Path) -> None:
    """Rows of several row groups come in order; large_string and dictionary columns are text too."""
    texts = [f"{text} {i}" for i in range(500) for text in TEXTS[:3]]
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(
            pa.table({"body": pa.array(texts).cast(kind)}), tmp_path / "a.parquet", row_group_size=400
        )
        assert list(documents([str(tmp_path / "a.parquet")], field="body")) == texts
    assert len([part for unit in units(expand([str(tmp_path)]), "body") for part in unit.slices]) == 4


def test_parquet_errors_are_one_line(tmp_path: Path) -> None:
    """A wrong column names the nearest one; a null names its row; a file that is none says so."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"content": ["a", None], "n": [1, 2]}), path)
    with pytest.raises(ConfigError, match=r"a\.parquet: no key `contents`") as caught:
        list(documents([str(path)], field="contents"))
    assert caught.value.hint == "did you mean --field content?"
    with pytest.raises(ConfigError, match="row 2: `content` is NoneType, not text"):
        list(documents([str(path)], field="content"))
    path.write_bytes(b"PAR1 this is not one")
    with pytest.raises(IntegrityError, match=r"a\.parquet: not a whole parquet file"):
        list(documents([str(path)], field="content"))


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ('{"text": "cut', IntegrityError, "not a JSON line"),
        ('{"txt": "x"}', ConfigError, "no key `text`"),
        ('{"text": 3}', ConfigError, "`text` is int, not text"),
        ('{"text": null}', ConfigError, "`text` is NoneType, not text"),
        ('["text"]', ConfigError, "a list, not an object"),
        ("[" * 100_000, IntegrityError, "not a JSON line"),
    ],
)
@pytest.mark.parametrize("unit", [100, 10**6])
def test_a_bad_line_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    kind: type[LlmctlError],
    message: str,
    unit: int,
) -> None:
    """Whatever is wrong with a line, the error has file:line, also far behind a cut."""
    monkeypatch.setattr(cutting, "UNIT_BYTES", unit)
    path = write_jsonl(tmp_path / "a.jsonl", ["good"] * 41)
    with path.open("a") as stream:
        stream.write("\n" + line + "\n" + json.dumps({"text": "good"}))
    with pytest.raises(kind, match=r"a\.jsonl:43: " + message):
        list(documents([str(path)]))


def test_a_missing_key_names_the_nearest(tmp_path: Path) -> None:
    """The hint names the key that was probably meant, else those that there are."""
    path = write_jsonl(tmp_path / "a.jsonl", ["x"], body="y")
    for field, hint in (("texts", "did you mean --field text?"), ("zzzz", "its keys: body, id, text")):
        with pytest.raises(ConfigError) as caught:
            list(documents([str(path)], field=field))
        assert hint in str(caught.value.hint)


def test_bytes_that_are_no_utf8_in_json_are_an_error(tmp_path: Path) -> None:
    """JSON is UTF-8: anything else is a damaged line, not a guess."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "ok"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(IntegrityError, match=r"a\.jsonl:2"):
        list(documents([str(path)]))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder as people have it: text, hidden files, caches, a binary."""
    for name in ("b.py", "a.md", "sub/c.txt", "sub/deep/d.py", ".git/config", "__pycache__/b.pyc", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a.md", "b.py", "sub/c.txt", "sub/deep/d.py"]),
        ("sub", ["sub/c.txt", "sub/deep/d.py"]),
        ("*.py", ["b.py"]),
        ("**/*.py", ["b.py", "sub/deep/d.py"]),
        ("sub/**", ["sub/c.txt", "sub/deep/d.py"]),
        ("[ab].*", ["a.md", "b.py"]),
        ("?.md", ["a.md"]),
        ("sub/*/d.py", ["sub/deep/d.py"]),
        (".hidden", [".hidden"]),
    ],
)
def test_folders_and_globs_mean_what_they_do_in_a_shell(tree: Path, pattern: str, names: list[str]) -> None:
    """Folders leave out hidden files, caches and binaries; globs match as in a shell."""
    assert list(documents([str(tree / pattern)])) == [f"text of {name}" for name in names]


def test_overlapping_sources_count_once_in_url_order(tree: Path) -> None:
    """A file that two sources name is one document; the order does not depend on the arguments' order."""
    there = [str(tree / "sub"), str(tree / "b.py"), str(tree / "**/*.py")]
    assert list(documents(there)) == list(documents(there[::-1]))
    assert list(documents(there)) == ["text of b.py", "text of sub/c.txt", "text of sub/deep/d.py"]


def test_a_name_with_a_pattern_in_it_is_a_name_first(tmp_path: Path) -> None:
    """An existing file called `a[1].txt` is meant by that name."""
    (tmp_path / "a[1].txt").write_text("this")
    (tmp_path / "a1.txt").write_text("not this")
    assert list(documents([str(tmp_path / "a[1].txt")])) == ["this"]


def test_sources_that_are_not_there(tree: Path) -> None:
    """A typo, an empty folder, a glob without a match and no source at all are named."""
    (tree / "empty").mkdir()
    for name in ("nope", "empty", "*.rst"):
        with pytest.raises(NotFoundError, match=name.replace("*", r"\*")):
            list(documents([str(tree / name)]))
    with pytest.raises(ConfigError, match="no source"):
        list(documents([]))


def test_a_binary_asked_for_by_name_is_an_error(tree: Path) -> None:
    """A folder's binaries are left out; one that was named is not silently ignored."""
    with pytest.raises(ConfigError, match=r"image\.png is not text"):
        list(documents([str(tree / "image.png")]))


def test_any_store_can_be_a_source(tree: Path) -> None:
    """Files, folders and globs behind a URL give the same documents as on disk."""
    base = f"memory://{secrets.token_hex(6)}"
    store = open_store(base)
    for name in ("a.md", "b.py", "sub/c.txt", "sub/deep/d.py", "image.png"):
        store.put_file(tree / name, name)
    for pattern in ("", "sub", "*.py", "**/*.py", "sub/c.txt"):
        assert list(documents([f"{base}/{pattern}".rstrip("/")])) == list(documents([str(tree / pattern)]))
    store.delete("sub")


def test_kinds_go_by_the_suffix(tmp_path: Path) -> None:
    """Upper case and compression suffixes are understood; what is unknown is text."""
    kinds = {
        "a.JSONL": Kind.JSONL,
        "a.ndjson.gz": Kind.JSONL,
        "a.parquet": Kind.PARQUET,
        "a.txt.zst": Kind.TEXT,
        "README": Kind.TEXT,
        "a.json": Kind.TEXT,
    }
    for name in kinds:
        (tmp_path / name).write_bytes(b"x")
    assert {file.path: file.kind for file in expand([str(tmp_path)])} == kinds
