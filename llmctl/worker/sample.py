"""`python -m llmctl.worker.sample`: text from one committed checkpoint folder, nothing else needed.

Prints the prompt and what the model makes of it. Every file is checked against the commit marker first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmctl.errors import IntegrityError, LlmctlError, NotFoundError
from llmctl.storage.checkpoints import verify_files
from llmctl.storage.corpus.tokenizer import BYTES, ByteTokenizer, Tokenizer, open_tokenizer
from llmctl.storage.local import LocalStore
from llmctl.wire.codec import loads
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.manifests import COMMIT_MARKER, CheckpointManifest
from llmctl.worker.generate import Sampling, generate
from llmctl.worker.model.decoder import Decoder, make_decoder


def open_checkpoint(folder: Path) -> CheckpointManifest:
    """The marker of a committed checkpoint, after every file was found to be what was saved.

    Raises:
        NotFoundError: no committed checkpoint there. IntegrityError: a file differs; names it.
    """
    try:
        text = (folder / COMMIT_MARKER).read_bytes()
    except OSError:
        raise NotFoundError(
            f"{folder} is no committed checkpoint (no {COMMIT_MARKER})",
            hint="name a folder step-… that `llmctl pull` has brought",
            stage="checkpoint",
        ) from None
    manifest = loads(CheckpointManifest, text)
    verify_files(LocalStore(folder), "", manifest)
    return manifest


def load_model(folder: Path, manifest: CheckpointManifest, base: str | None = None) -> Decoder:
    """The model of a verified checkpoint, on this machine's GPU where there is one.

    Args:
        base: where the base model of adapters is now, if it has moved.
    """
    import torch

    from llmctl.worker.checkpoint.load import read_tensors
    from llmctl.worker.checkpoint.state import model_tensors
    from llmctl.worker.model.config import parse_model_config

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_decoder(parse_model_config(manifest.model), device)
    if manifest.base is None:
        read_tensors(folder, model_tensors(model))
    else:
        _load_adapted(model, folder, base)
    return model.requires_grad_(False).eval()


def _load_adapted(model: Decoder, folder: Path, base: str | None) -> None:
    """Base weights with the adapters of `folder` merged in."""
    import torch

    from llmctl.worker.hf.weights import open_weights

    named = dict(model.named_parameters())
    with open_weights(str(folder), base=base) as weights, torch.no_grad():
        for name, tensor in weights.items(list(named)):
            named[name].copy_(tensor)


def load_tokenizer(folder: Path, data: dict[str, Any]) -> Tokenizer:
    """The tokenizer that the training data was made with; a file of it lies in the checkpoint.

    Raises:
        IntegrityError: the marker does not say which one.
    """
    if data.get("tokenizer") == BYTES:
        return ByteTokenizer()
    entry = data.get("tokenizer_file")
    if not isinstance(entry, dict) or "path" not in entry:
        raise IntegrityError(f"{folder / COMMIT_MARKER} names no tokenizer", stage="checkpoint")
    return open_tokenizer(str(folder / str(entry["path"])), eos=data.get("eos"))


def sample(folder: Path, prompt: str, sampling: Sampling, base: str | None = None) -> str:
    """`prompt` and its continuation by the model in `folder`."""
    manifest = open_checkpoint(folder)
    tokenizer = load_tokenizer(folder, manifest.data)
    model = load_model(folder, manifest, base)
    # Without a prompt, begin as a document begins: after the end of another one.
    ids = tokenizer.encode(prompt) or [tokenizer.eos]
    new = generate(model, ids, sampling, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos)
    return tokenizer.decode([*ids, *new])


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m llmctl.worker.sample", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a committed checkpoint folder")
    parser.add_argument("--base", help="base model of a checkpoint of adapters, if it has moved")
    parser.add_argument("--prompt", default="", help="text to go on from; else a new document")
    parser.add_argument("--max-new", type=int, default=100, help="tokens to add at most")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another text")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The process: text on stdout, an error as one line on stderr."""
    given = parse_arguments(arguments)
    try:
        sampling = Sampling(max_new=given.max_new, temperature=given.temperature, seed=given.seed)
        sys.stdout.write(sample(given.checkpoint, given.prompt, sampling, given.base) + "\n")
    except LlmctlError as error:
        sys.stderr.write(f"error: {error.line()}\n")
        if error.hint:
            sys.stderr.write(f"  {error.hint}\n")
        return ExitCode.INTEGRITY if isinstance(error, IntegrityError) else ExitCode.INTERNAL
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
