"""`llmctl data shard`: text to token shards, any files to tars. `datasets` has the other `data` verbs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli import datasend, datasets
from llmctl.controller.cli.options import OutputOption, checked_output

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.wire.manifests import ShardManifest, TarManifest

data_app = typer.Typer(
    help="Make data sets, look at them, check them, send them to hosts.", no_args_is_help=True
)

EPILOG = (
    "Examples:\n\n"
    "    llmctl data shard corpus/ shards/\n\n"
    "    llmctl data shard 'logs/*.jsonl.gz' s3://bucket/logs --field body --tokenizer tokenizer.json\n\n"
    "    llmctl data shard photos/ hdfs://nn:8020/photos --format tar\n\n"
    "An interrupted run goes on where it was. Same input and settings give the same bytes."
)

_SIZE = re.compile(r"(\d+)\s*([kmgt]?)(?:i?b)?", re.I)


def register(app: typer.Typer) -> None:
    data_app.command("ls", epilog=datasets.LS_EPILOG)(datasets.ls)
    data_app.command("send", epilog=datasend.EPILOG)(datasend.send)
    data_app.command("verify", epilog=datasets.VERIFY_EPILOG)(datasets.verify)
    data_app.command("audit", epilog=datasets.AUDIT_EPILOG)(datasets.audit)
    app.add_typer(data_app, name="data")


@data_app.callback()
def _root() -> None:
    """Make data sets, look at them, check them, send them to hosts."""


@data_app.command("shard", epilog=EPILOG)
def shard(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC... DEST", help="Files, folders, globs or fsspec URLs; the last is where to."
        ),
    ],
    form: Annotated[
        str, typer.Option("--format", help="tokens, or tar: WebDataset-style tars of any files.")
    ] = "tokens",
    field: Annotated[
        str | None, typer.Option("--field", help="Key of JSONL lines, column of parquet; else `text`.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer", metavar="NAME", help="bytes (default), or a Hugging Face tokenizer.json."
        ),
    ] = None,
    eos: Annotated[
        str | None, typer.Option("--eos", metavar="TOKEN", help="The tokenizer's end-of-document token.")
    ] = None,
    shard_tokens: Annotated[
        int | None, typer.Option("--shard-tokens", min=2, help="Tokens per shard; else 32 Mi.")
    ] = None,
    shard_bytes: Annotated[
        str | None, typer.Option("--shard-bytes", metavar="SIZE", help="Content per tar; else 256M.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes that tokenise; else one per core.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another or a damaged data set at DEST.")
    ] = False,
    output: OutputOption = None,
) -> None:
    """Tokenise text, JSONL or parquet, or pack any files into tars: in parallel, hashed, resumable."""
    from llmctl.controller.cli.session import Session
    from llmctl.controller.ui.datasets import contents, made_with
    from llmctl.errors import ConfigError

    if len(paths) < 2:
        raise ConfigError("shard needs a source and a destination", hint="llmctl data shard SRC... DEST")
    tokens_only = {
        "field": field,
        "tokenizer": tokenizer,
        "eos": eos,
        "shard_tokens": shard_tokens,
        "workers": workers,
    }
    given = {name: value for name, value in tokens_only.items() if value is not None}
    session = Session(output=checked_output(output))
    manifest: ShardManifest | TarManifest
    if form == "tar":
        _refuse("tar", given)
        size = None if shard_bytes is None else parse_size(shard_bytes)
        manifest = tars_with_progress(session, paths[:-1], paths[-1], size, overwrite=overwrite)
    elif form == "tokens":
        _refuse("tokens", {} if shard_bytes is None else {"shard_bytes": shard_bytes})
        manifest = shard_with_progress(session, paths[:-1], paths[-1], overwrite=overwrite, **given)
    else:
        raise ConfigError(f"--format must be tokens or tar, found {form!r}")
    if session.json:
        session.screen.document("shard", {"dest": paths[-1], "manifest": manifest})
    else:
        session.screen.result(f"{paths[-1]}: {contents(manifest)} ({made_with(manifest)})")


def shard_with_progress(session: Session, sources: list[str], dest: str, **settings: object) -> ShardManifest:
    """Shard with a progress bar on a terminal; `demo` calls it too."""
    from llmctl.controller.ui.sharding import ShardingBar
    from llmctl.storage.corpus.shard import shard

    given = {name: value for name, value in settings.items() if value is not None}
    with ShardingBar(session.screen) as bar:
        return shard(sources, dest, progress=bar.update, **given)  # type: ignore[arg-type]


def tars_with_progress(
    session: Session, sources: list[str], dest: str, shard_bytes: int | None, *, overwrite: bool
) -> TarManifest:
    """Pack into tars with a progress bar on a terminal."""
    from llmctl.controller.ui.sharding import ShardingBar
    from llmctl.storage.corpus.tarmake import SHARD_BYTES, shard_tars

    size = SHARD_BYTES if shard_bytes is None else shard_bytes
    with ShardingBar(session.screen) as bar:
        return shard_tars(sources, dest, shard_bytes=size, overwrite=overwrite, progress=bar.update)


def parse_size(text: str) -> int:
    """`256M`, `1 GiB` or plain bytes; units are powers of 1024. Raises ConfigError."""
    from llmctl.errors import ConfigError

    found = _SIZE.fullmatch(text.strip())
    if found is None or int(found[1]) == 0:
        raise ConfigError(f"{text!r} is no size", hint="write it like 256M or 1G")
    return int(found[1]) << 10 * ["", "k", "m", "g", "t"].index(found[2].lower())


def _refuse(form: str, given: Mapping[str, object]) -> None:
    """Options of the other format would be ignored without a word."""
    from llmctl.errors import ConfigError

    for name in given:
        raise ConfigError(f"--{name.replace('_', '-')} means nothing for --format {form}")
