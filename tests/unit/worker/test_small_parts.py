"""Precision, log lines, `report`, sampling: small pure parts of the worker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmctl.errors import ConfigError
from llmctl.wire.metrics import StepLine
from llmctl.worker import report
from llmctl.worker.generate import Sampling, generate
from llmctl.worker.metrics import human_bytes, human_count, scalars, step_text
from llmctl.worker.model.config import ModelConfig
from llmctl.worker.model.decoder import Decoder, initialise, make_decoder
from llmctl.worker.precision import choose_precision, cpu_flags


def test_cpu_flags_are_read_on_both_architectures() -> None:
    """x86 says `flags`, Arm says `Features`; a machine that says neither has none."""
    assert "amx_bf16" in cpu_flags("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16\n")
    assert "bf16" in cpu_flags("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert cpu_flags("processor: 0\n") == frozenset()


@pytest.mark.parametrize(
    ("setting", "fast", "bf16"),
    [("auto", True, True), ("auto", False, False), ("bf16", False, True), ("fp32", True, False)],
)
def test_auto_takes_bf16_only_where_all_ranks_have_it_fast(setting: str, fast: bool, bf16: bool) -> None:
    """An explicit setting wins; `auto` never makes one slow rank emulate bf16."""
    assert choose_precision(setting, "cpu", fast_everywhere=fast).bf16 is bf16


def test_an_unknown_precision_is_refused() -> None:
    """fp16 would need loss scaling that is not there: better an error than a silent NaN."""
    with pytest.raises(ConfigError, match="fp16"):
        choose_precision("fp16", "cuda", fast_everywhere=True)


def test_a_step_line_reads_like_the_storyboard() -> None:
    """Step, loss, rate, speed and waiting, in that order, with units."""
    line = StepLine(t=0, step=420, total=5000, loss=3.4121, lr=2.9e-4, tokens_per_s=41_200, data_wait=0.0)
    assert step_text(line) == "step 420/5000 loss 3.412 lr 2.9e-04 41.2k tok/s data-wait 0.0 %"


def test_what_is_not_known_is_not_shown() -> None:
    """A script that reports only its step gets a line without invented numbers."""
    assert step_text(StepLine(t=0, step=3)) == "step 3"
    assert scalars(StepLine(t=0, step=3, loss=1.5)) == {"train/loss": 1.5}


def test_numbers_are_short() -> None:
    """People read three digits and a unit."""
    assert [human_count(n) for n in (412, 41_200, 3_100_000)] == ["412", "41.2k", "3.10M"]
    assert [human_bytes(n) for n in (512, 18_000, 1.1e9)] == ["512 B", "18 kB", "1.1 GB"]


def test_report_appends_a_step_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script's numbers, its own ones too, end up in $LLMCTL_METRICS, one line per call."""
    path = tmp_path / "metrics.jsonl"
    monkeypatch.setenv("LLMCTL_METRICS", str(path))
    monkeypatch.delenv("RANK", raising=False)
    report(step=1, total=9, loss=2.5, accuracy=0.25)
    report(step=2)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["kind"], first["step"], first["loss"], first["accuracy"]) == ("step", 1, 2.5, 0.25)
    assert second["step"] == 2


def test_report_is_silent_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a run, and on every rank but 0, a script may call it all the same."""
    path = tmp_path / "metrics.jsonl"
    monkeypatch.delenv("LLMCTL_METRICS", raising=False)
    report(step=1)
    monkeypatch.setenv("LLMCTL_METRICS", str(path))
    monkeypatch.setenv("RANK", "1")
    report(step=1)
    assert not path.exists()


def test_report_needs_no_torch() -> None:
    """Importing the public API costs a script nothing but the standard library."""
    code = "import sys; from llmctl.worker import report; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def small_model() -> Decoder:
    config = ModelConfig(vocab_size=64, dim=16, layers=2, heads=2, kv_heads=1, ffn_dim=32)
    model = make_decoder(config, torch.device("cpu"))
    initialise(model, seed=0)
    return model


def test_greedy_generation_is_what_the_whole_model_prefers() -> None:
    """With temperature 0 each token is the argmax over the logits of the whole text so far."""
    model, ids = small_model(), [1, 2, 3]
    made = list(generate(model, ids, Sampling(max_new=6, temperature=0), vocab_size=64, eos=-1))
    for token in made:
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)


def test_padding_ids_are_never_chosen_and_the_seed_decides() -> None:
    """Only ids of the tokenizer come out; the same seed gives the same text."""
    model = small_model()
    hot = Sampling(max_new=40, temperature=5.0, seed=3)
    first, again = (list(generate(model, [1], hot, vocab_size=10, eos=-1)) for _ in range(2))
    assert first == again
    assert max(first) < 10
    assert first != list(
        generate(model, [1], Sampling(max_new=40, temperature=5.0, seed=4), vocab_size=10, eos=-1)
    )


def test_generation_ends_with_the_document() -> None:
    """The end-of-text token ends it and is not part of the text."""
    model, calm = small_model(), Sampling(max_new=6, temperature=0)
    first = next(generate(model, [1], calm, vocab_size=64, eos=-1))
    assert list(generate(model, [1], calm, vocab_size=64, eos=first)) == []
