"""A batch's output folder: parts that are there count, another batch's don't, the manifest is last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmctl.errors import ConfigError, NotFoundError
from llmctl.wire.serving import BatchSpec
from llmctl.worker.infer.parts import Output, open_output


def output(folder: Path, **changes: object) -> Output:
    if not (folder / "in.jsonl").exists():
        (folder / "in.jsonl").touch()
    settings = {"input": str(folder / "in.jsonl"), "output": str(folder / "out"), "part_lines": 2, **changes}
    return open_output(BatchSpec(**settings), "model")  # type: ignore[arg-type]


def records(first: int, count: int) -> list[dict[str, object]]:
    return [{"index": first + n, "prompt_tokens": 2, "completion_tokens": 3} for n in range(count)]


def test_a_second_run_finds_whole_parts_only(tmp_path: Path) -> None:
    """A part of other lines, or cut, is made again; the manifest counts what was found and what was made."""
    one = output(tmp_path)
    assert one.claim() is None
    done = one.write(0, records(0, 2))
    one.write(2, records(2, 2))
    cut = tmp_path / "out/part-000000000002.jsonl"
    cut.write_text(cut.read_text()[:-5])
    again = output(tmp_path)
    assert again.claim() is None
    assert again.find(0, 2) == done
    assert again.find(0, 1) is None
    assert again.find(2, 2) is None
    assert again.find(4, 2) is None
    manifest = again.finish([again.write(2, [*records(2, 1), {"index": 3, "error": "x"}]), done])
    assert (manifest.lines, manifest.errors, manifest.prompt_tokens) == (4, 1, 6)
    assert [part.first for part in manifest.parts] == [0, 2]
    assert output(tmp_path).claim() == manifest


def test_another_batchs_folder_is_refused(tmp_path: Path) -> None:
    """Another task, setting or input: never mixed. So is a folder with parts of nobody knows what."""
    output(tmp_path).claim()
    for changes in ({"task": "score"}, {"part_lines": 3}, {"sampling": {"seed": 1}}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            output(tmp_path, **changes).claim()
    (tmp_path / "in.jsonl").write_text("more\n")
    with pytest.raises(ConfigError, match="input_size"):
        output(tmp_path).claim()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange/part-1.jsonl").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match="something else"):
        output(tmp_path, output=str(tmp_path / "strange")).claim()


def test_an_input_that_is_not_there_says_where_it_is_looked_for(tmp_path: Path) -> None:
    """The first host reads it, not the machine of the command."""
    with pytest.raises(NotFoundError) as caught:
        open_output(BatchSpec(input=str(tmp_path / "no.jsonl"), output=str(tmp_path / "out")), "model")
    assert "first host" in str(caught.value.hint)
