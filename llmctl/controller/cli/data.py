"""`llmctl data shard`: text to token shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.options import OutputOption, checked_output

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.wire.manifests import ShardManifest

data_app = typer.Typer(help="Prepare the corpus.", no_args_is_help=True)

EPILOG = (
    "Examples:\n\n"
    "    llmctl data shard corpus/ shards/\n\n"
    "    llmctl data shard 'logs/*.jsonl.gz' shards/ --field body --tokenizer tokenizer.json\n\n"
    "An interrupted run goes on where it was. Same input and settings give the same bytes."
)


def register(app: typer.Typer) -> None:
    app.add_typer(data_app, name="data")


@data_app.callback()
def _root() -> None:
    """Prepare the corpus."""


@data_app.command("shard", epilog=EPILOG)
def shard(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC... DEST", help="Files, folders, globs or fsspec URLs; the last is where to."
        ),
    ],
    field: Annotated[str, typer.Option("--field", help="Key of JSONL lines, column of parquet.")] = "text",
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="NAME", help="bytes, or a Hugging Face tokenizer.json.")
    ] = "bytes",
    eos: Annotated[
        str | None, typer.Option("--eos", metavar="TOKEN", help="The tokenizer's end-of-document token.")
    ] = None,
    shard_tokens: Annotated[
        int | None, typer.Option("--shard-tokens", min=2, help="Tokens per shard.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; else one per core.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another corpus at DEST.")] = False,
    output: OutputOption = None,
) -> None:
    """Tokenise text, JSONL or parquet into shards with a manifest of hashes, in parallel, resumable."""
    from llmctl.controller.cli.session import Session
    from llmctl.errors import ConfigError

    if len(paths) < 2:
        raise ConfigError("shard needs a source and a destination", hint="llmctl data shard SRC... DEST")
    session = Session(output=checked_output(output))
    manifest = shard_with_progress(
        session,
        paths[:-1],
        paths[-1],
        tokenizer=tokenizer,
        eos=eos,
        field=field,
        shard_tokens=shard_tokens,
        workers=workers,
        overwrite=overwrite,
    )
    if session.json:
        session.screen.document("shard", {"dest": paths[-1], "manifest": manifest})
    else:
        session.screen.result(_summary(paths[-1], manifest))


def shard_with_progress(session: Session, sources: list[str], dest: str, **settings: object) -> ShardManifest:
    """Shard with a progress bar on a terminal; `demo` calls it too."""
    from llmctl.controller.ui.sharding import ShardingBar
    from llmctl.storage.corpus.shard import SHARD_TOKENS, shard

    if settings.get("shard_tokens") is None:
        settings["shard_tokens"] = SHARD_TOKENS
    with ShardingBar(session.screen) as bar:
        return shard(sources, dest, progress=bar.update, **settings)  # type: ignore[arg-type]


def _summary(dest: str, manifest: ShardManifest) -> str:
    from llmctl.controller.ui.format import rate

    return (
        f"{dest}: {rate(manifest.tokens)} tokens of {manifest.documents} documents "
        f"in {len(manifest.shards)} shards ({manifest.dtype}, {manifest.tokenizer})"
    )
