"""A `Saver` as the job wants it, and as this host's memory allows it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from llmctl.storage.retention import Retention
from llmctl.wire.manifests import CheckpointManifest
from llmctl.wire.recipe import RecipeSpec
from llmctl.wire.specs import NodeSpec
from llmctl.worker.checkpoint.fence import CommitFence
from llmctl.worker.checkpoint.place import Place
from llmctl.worker.checkpoint.save import Saver, room_for_snapshot
from llmctl.worker.checkpoint.snapshot import agreed_share
from llmctl.worker.checkpoint.writer import Writer
from llmctl.worker.metrics import Metrics
from llmctl.worker.session import Session, open_beside


def open_saver(
    spec: NodeSpec,
    recipe: RecipeSpec,
    session: Session,
    place: Place,
    metrics: Metrics,
    *,
    run_dir: str,
    tensors: Mapping[str, Tensor],
    whole_copies: bool,
    start: int,
    template: CheckpointManifest,
    extra_files: Mapping[str, bytes],
) -> Saver:
    """All ranks call this together.

    Args:
        tensors: what every save will be given.
        start: the step that this attempt goes on from.
        whole_copies: all ranks hold the same ones; else each has shards, or layers, of its own.
    """
    share = None if whole_copies else agreed_share(session, tensors)
    in_background = recipe.checkpoint_async
    if in_background:
        members = session.world if place.shared else len(session.host_ranks)
        own = tensors if share is None else {name: tensors[name] for name in share}
        lack = room_for_snapshot(session, own, members if share is None else 1)
        if lack:
            metrics.note(f"checkpoints are saved while training waits: {lack}")
            in_background = False
    writer = Writer(
        session=open_beside(session, spec) if in_background else session,
        place=place,
        start=start,
        template=template,
        retention=Retention(keep=recipe.keep, keep_every=recipe.keep_every),
        extra_files=extra_files,
        verify_upload=recipe.verify_upload,
        fence=CommitFence(run_dir, spec).check,
        say=metrics.note,
    )
    return Saver(
        session=session,
        writer=writer,
        metrics=metrics,
        in_background=in_background,
        on_failure=recipe.checkpoint_on_failure,
        share=share,
    )
