"""`python -m llmctl.worker.hf export|import|reshard SRC DEST`: what `llmctl ckpt` runs where torch is.

Prints one JSON line on success; a failure is `error: …` on stderr and the exit code that says of which kind.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from llmctl.errors import ConfigError, IntegrityError, LlmctlError, NotFoundError, TransferError
from llmctl.wire.exitcodes import ExitCode

CODES = {
    ConfigError: ExitCode.USAGE,
    NotFoundError: ExitCode.NOT_FOUND,
    IntegrityError: ExitCode.INTEGRITY,
    TransferError: ExitCode.INTEGRITY,
}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m llmctl.worker.hf", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    export = verbs.add_parser("export", help="a checkpoint as a Hugging Face folder")
    export.add_argument("--dtype", default="fp32", help="fp32, bf16 or fp16")
    export.add_argument("--base", help="base model of adapters, if it has moved")
    export.add_argument("--adapter-only", action="store_true", help="the adapters alone, for peft")
    export.add_argument("--shard-bytes", type=int, help="bytes per safetensors file at most")
    for name, words in (("import", "a Hugging Face folder as a checkpoint"), ("reshard", "as N files")):
        verbs.add_parser(name, help=words).add_argument("--files", type=int, default=1, help="files to write")
    for verb in verbs.choices.values():
        verb.add_argument("--overwrite", action="store_true", help="replace what is at DEST")
        verb.add_argument("source", metavar="SRC")
        verb.add_argument("dest", metavar="DEST")
    return parser.parse_args(arguments)


def convert(given: argparse.Namespace) -> dict[str, Any]:
    """Do what was asked; returns what there is to say about it."""
    from llmctl.storage.files import open_store
    from llmctl.worker.hf import convert, export
    from llmctl.worker.hf.folder import open_folder
    from llmctl.worker.hf.weights import find_checkpoint, open_checkpoint, open_weights

    if given.verb == "export":
        with open_weights(given.source, base=given.base) as weights:
            if given.adapter_only:
                written = export.export_adapter(
                    weights, given.dest, dtype=given.dtype, overwrite=given.overwrite
                )
            else:
                limit = given.shard_bytes or export.SHARD_BYTES
                written = export.export_model(
                    weights, given.dest, dtype=given.dtype, shard_bytes=limit, overwrite=given.overwrite
                )
        return {"files": list(written.files), "bytes": written.bytes, "parameters": written.parameters}
    if given.files < 1:
        raise ConfigError(f"--files: must be at least 1, not {given.files}")
    if given.verb == "import":
        made = convert.import_model(
            open_folder(given.source), given.dest, files=given.files, overwrite=given.overwrite
        )
    else:
        found = find_checkpoint(open_store(given.source))
        if found is None:
            raise NotFoundError(f"{given.source} holds no committed checkpoint", stage="checkpoint")
        with open_checkpoint(found) as checkpoint:
            made = convert.reshard(checkpoint, given.dest, files=given.files, overwrite=given.overwrite)
    names = [entry.path for entry in made.files]
    return {"files": names, "bytes": sum(entry.size for entry in made.files), "step": made.step}


def main(arguments: Sequence[str] | None = None) -> int:
    """The process."""
    given = parse_arguments(arguments)
    try:
        sys.stdout.write(json.dumps(convert(given)) + "\n")
    except LlmctlError as error:
        sys.stderr.write(f"error: {error.line()}\n")
        if error.hint:
            sys.stderr.write(f"  {error.hint}\n")
        return next((code for kind, code in CODES.items() if isinstance(error, kind)), ExitCode.INTERNAL)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
