"""Data sets for people and machines: what one holds, several in a table, what is wrong with one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llmctl.controller.ui.format import rate, size
from llmctl.controller.ui.plain import plain
from llmctl.storage.corpus.dataset import Manifest, files_of
from llmctl.storage.corpus.survey import DataSet
from llmctl.storage.findings import Finding
from llmctl.wire import codec
from llmctl.wire.manifests import ShardManifest, TarManifest


def contents(manifest: Manifest) -> str:
    """`1.2M tokens of 12,345 documents in 96 shards`, or samples in tars."""
    count = len(manifest.shards)
    shards = f"{count} shard{'s' * (count != 1)}"
    if isinstance(manifest, TarManifest):
        return f"{manifest.samples:,} samples of {manifest.members:,} files in {shards}"
    return f"{rate(manifest.tokens)} tokens of {manifest.documents:,} documents in {shards}"


def made_with(manifest: Manifest) -> str:
    """What a token is, or what a sample has."""
    if isinstance(manifest, TarManifest):
        kinds = [f"{count:,} .{name}" if name else f"{count:,} without" for name, count in _kinds(manifest)]
        return " · ".join(kinds)
    file = manifest.tokenizer_file
    tokenizer = f"{manifest.tokenizer} {file.sha256[:12]}" if file else manifest.tokenizer
    return f"{manifest.dtype} · {tokenizer} · {manifest.vocab_size:,} ids · end {manifest.eos}"


def dataset_lines(one: DataSet) -> list[str]:
    """One data set in a few lines."""
    if one.manifest is None:
        return [f"{one.store.uri}  {one.problem}"]
    lines = [
        f"{one.store.uri}  {one.manifest.format} · {contents(one.manifest)} · {size(one.bytes)}",
        f"    {made_with(one.manifest)}",
    ]
    settings = {name: value for name, value in one.manifest.settings.items() if name != "format"}
    if settings:
        told = " ".join(f"{name}={value}" for name, value in sorted(settings.items()))
        lines.append(f"    made with {told}")
    return [plain(line) for line in lines]


def datasets_table(found: Sequence[DataSet]) -> RenderableType:
    """One line per data set."""
    table = _table("URI", "FORMAT", "TOKENS", "DOCS", "SAMPLES", "SHARDS", "SIZE", "MADE WITH")
    for one in found:
        manifest = one.manifest
        if manifest is None:
            table.add_row(Text(one.store.uri), "-", "-", "-", "-", "-", "-", Text(plain(one.problem)))
            continue
        tokens = manifest if isinstance(manifest, ShardManifest) else None
        table.add_row(
            Text(one.store.uri),
            manifest.format,
            rate(tokens.tokens) if tokens else "-",
            rate(tokens.documents) if tokens else "-",
            "-" if isinstance(manifest, ShardManifest) else rate(manifest.samples),
            str(len(manifest.shards)),
            size(one.bytes),
            Text(plain(made_with(manifest))),
        )
    return table


def shards_table(manifest: Manifest) -> RenderableType:
    """One line per shard."""
    if isinstance(manifest, TarManifest):
        table = _table("SHARD", "SAMPLES", "FILES", "SIZE", "SHA256")
        for tar in manifest.shards:
            file = tar.file
            table.add_row(file.path, str(tar.samples), str(tar.members), size(file.size), file.sha256[:12])
        return table
    table = _table("SHARD", "TOKENS", "DOCS", "SIZE", "SHA256")
    for shard in manifest.shards:
        bytes_ = size(shard.bin.size + shard.idx.size)
        table.add_row(shard.name, str(shard.tokens), str(shard.documents), bytes_, shard.bin.sha256[:12])
    return table


def dataset_document(one: DataSet, *, shards: bool) -> dict[str, Any]:
    """One data set for machines: the manifest's own names, shards counted unless asked for."""
    if one.manifest is None:
        return {"uri": one.store.uri, "problem": one.problem}
    body: dict[str, Any] = codec.encode(one.manifest)
    listed = body.pop("shards")
    body["shards"] = listed if shards else len(listed)
    return {"uri": one.store.uri, **body, "bytes": one.bytes, "files": len(files_of(one.manifest))}


def findings_document(one: DataSet, findings: Sequence[Finding]) -> dict[str, Any]:
    """What is wrong with one data set, for machines."""
    wrong = [{"path": f.path, "problem": f.problem, "ranges": list(f.ranges)} for f in findings]
    files = len(files_of(one.manifest)) if one.manifest else 0
    return {"uri": one.store.uri, "files": files, "bytes": one.bytes, "findings": wrong}


def _kinds(manifest: TarManifest) -> list[tuple[str, int]]:
    return sorted(manifest.extensions.items(), key=lambda kind: (-kind[1], kind[0]))[:12]


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        numeric = title in ("TOKENS", "DOCS", "SAMPLES", "SHARDS", "FILES", "SIZE")
        table.add_column(title, justify="right" if numeric else "left", overflow="fold")
    return table
