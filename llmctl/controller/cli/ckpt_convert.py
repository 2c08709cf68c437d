"""`llmctl ckpt export | import | reshard`: checkpoints to and from Hugging Face folders, or as N files.

The work needs torch, which this process never imports: it runs in a process of its own, with this Python
where that has torch, else with the one that `--python` names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.controller.cli.options import OutputOption, checked_output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmctl.errors import LlmctlError

EXPORT_EPILOG = (
    "Examples:\n\n    llmctl ckpt export llmctl-runs/demo-7f3a model/ --dtype bf16\n\n"
    "    llmctl ckpt export s3://bucket/sft/step-00000400 adapter/ --adapter-only"
)
IMPORT_EPILOG = "Examples:\n\n    llmctl ckpt import SmolLM2-135M/ hdfs://nn/base"
RESHARD_EPILOG = "Examples:\n\n    llmctl ckpt reshard s3://bucket/demo one-file/ --files 1"

SourceArgument = Annotated[
    str, typer.Argument(metavar="SRC", help="A checkpoint, a place of checkpoints (its newest), or a URL.")
]
PythonOption = Annotated[
    str | None, typer.Option("--python", metavar="PATH", help="Interpreter that has torch; else this one.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is at DEST.")]
FilesOption = Annotated[int, typer.Option("--files", min=1, help="Files that the tensors are spread over.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`, the group `ckpt`."""
    app.command("export", epilog=EXPORT_EPILOG)(export)
    app.command("import", epilog=IMPORT_EPILOG)(import_)
    app.command("reshard", epilog=RESHARD_EPILOG)(reshard)


def export(
    source: SourceArgument,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Folder or URL of the new model.")],
    dtype: Annotated[str, typer.Option("--dtype", help="Of the weights: fp32, bf16 or fp16.")] = "fp32",
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="LoRA adapters alone, for peft; else merged.")
    ] = False,
    base: Annotated[
        str | None, typer.Option("--base", metavar="URI", help="Base model of adapters, if it has moved.")
    ] = None,
    overwrite: OverwriteOption = False,
    python: PythonOption = None,
    output: OutputOption = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder: safetensors, config.json and tokenizer, for transformers.

    LoRA adapters are merged into their base model. Every file of the checkpoint is verified first.
    """
    flags = ["--dtype", dtype, *(["--adapter-only"] if adapter_only else [])]
    flags += ["--base", _absolute(base)] if base is not None else []
    _convert("export", source, dest, flags, overwrite=overwrite, python=python, output=output)


def import_(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder or URL of a Hugging Face model.")],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Place for checkpoints; it gets step 0.")],
    files: FilesOption = 1,
    overwrite: OverwriteOption = False,
    python: PythonOption = None,
    output: OutputOption = None,
) -> None:
    """Write a Hugging Face model as a checkpoint, hashed like any other; weights only.

    A job starts from it, as from the folder itself, with `recipe.model.from`.
    """
    flags = ["--files", str(files)]
    _convert("import", source, dest, flags, overwrite=overwrite, python=python, output=output)


def reshard(
    source: SourceArgument,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Another place for checkpoints.")],
    files: FilesOption = 1,
    overwrite: OverwriteOption = False,
    python: PythonOption = None,
    output: OutputOption = None,
) -> None:
    """Write all of a checkpoint anew as N files, optimizer and random states included.

    Not needed for another number of ranks: any checkpoint loads into any layout.
    """
    flags = ["--files", str(files)]
    _convert("reshard", source, dest, flags, overwrite=overwrite, python=python, output=output)


def _convert(
    verb: str,
    source: str,
    dest: str,
    flags: Sequence[str],
    *,
    overwrite: bool,
    python: str | None,
    output: str | None,
) -> None:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.ui.format import size
    from llmctl.controller.ui.stages import Stages

    session = Session(output=checked_output(output))
    interpreter = _with_torch(python)
    command = [interpreter, "-m", "llmctl.worker.hf", verb, *flags]
    command += ["--overwrite"] if overwrite else []
    with Stages(session.screen).stage(verb, f"{source} to {dest}") as stage:
        done = _run([*command, "--", _absolute(source), _absolute(dest)])
        stage.text = f"{size(done['bytes'])} in {len(done['files'])} files in {dest}"
    if session.json:
        session.screen.document(f"ckpt-{verb}", {"source": source, "dest": dest, **done})


def _run(command: Sequence[str]) -> dict[str, Any]:
    """What the process says of its work. Raises the LlmctlError that it told of."""
    import json
    import os
    import subprocess
    from pathlib import Path

    import llmctl

    # Another interpreter has no llmctl of its own, and this one's may not be installed.
    paths = [str(Path(llmctl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    if done.returncode:
        raise _failure(done.returncode, done.stderr.decode(errors="replace"))
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _failure(code: int, text: str) -> LlmctlError:
    """The error of the process: its own line, of the kind that its exit code says."""
    from llmctl import errors
    from llmctl.wire.exitcodes import ExitCode

    kinds: dict[int, type[LlmctlError]] = {
        ExitCode.USAGE: errors.ConfigError,
        ExitCode.NOT_FOUND: errors.NotFoundError,
        ExitCode.INTEGRITY: errors.IntegrityError,
    }
    lines = text.strip().splitlines()
    told = next((at for at, line in enumerate(lines) if line.startswith("error: ")), None)
    if told is None:
        last = lines[-1] if lines else f"exit {code}"
        return errors.JobFailedError(last, stage="ckpt")
    hint = lines[told + 1].strip() if told + 1 < len(lines) else None
    return kinds.get(code, errors.JobFailedError)(lines[told].removeprefix("error: "), hint=hint)


def _with_torch(python: str | None) -> str:
    """The interpreter to use. Raises PreflightError where it has no torch."""
    import importlib.util
    import subprocess
    import sys

    from llmctl.errors import PreflightError

    if python is None:
        has_torch = importlib.util.find_spec("torch") is not None
    else:
        probe = [python, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"]
        try:
            has_torch = subprocess.run(probe, capture_output=True, timeout=30, check=False).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            has_torch = False
    interpreter = python or sys.executable
    if not has_torch:
        raise PreflightError(
            f"{interpreter} has no torch",
            stage="ckpt",
            hint="pip install 'llmctl[worker]' there, name another one with --python, or run this on a host",
        )
    return interpreter


def _absolute(uri: str) -> str:
    """A local path as the other process must have it to mean the same; a URL as it is."""
    from llmctl.storage.uris import is_local, local_path

    return str(local_path(uri)) if is_local(uri) else uri
