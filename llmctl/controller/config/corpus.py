"""What can be known of a job's corpus before any host is asked: its vocabulary, which sizes the model."""

from __future__ import annotations

from pathlib import Path

from llmctl.controller.config.models import JobFile
from llmctl.errors import IntegrityError
from llmctl.wire.codec import loads
from llmctl.wire.manifests import SHARD_MANIFEST, ShardManifest


def corpus_vocabulary(job: JobFile, base: Path) -> int | None:
    """Tokens of the corpus, where its manifest lies on this machine; None where it does not.

    A store behind a URL is not asked: what the planner gains is not worth the wait at every start.
    """
    corpora = job.data.corpora if job.data else ()  # those of a mixture have one tokenizer
    uri = corpora[0].uri.removeprefix("file://") if corpora else ""
    if not uri or "://" in uri or uri.startswith("~"):
        return None
    try:
        return loads(ShardManifest, (base / uri / SHARD_MANIFEST).read_bytes()).vocab_size
    except (OSError, IntegrityError):
        # Not here, or not a manifest: whoever trains on it will say so.
        return None
