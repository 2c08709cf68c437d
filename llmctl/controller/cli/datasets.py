"""`llmctl data ls | verify | audit`: what a data set holds, and whether it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.options import HostsOption, OutputOption, checked_output

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.storage.corpus.dataset import Manifest
    from llmctl.storage.corpus.survey import DataSet
    from llmctl.storage.files import Store
    from llmctl.storage.findings import Finding, Progress

    Check = Callable[[Store, Manifest, Progress], list[Finding]]

LS_EPILOG = "Examples:\n\n    llmctl data ls s3://bucket/corpora\n\n    llmctl data ls shards/ --shards"
VERIFY_EPILOG = (
    "Examples:\n\n    llmctl data verify hdfs://nn:8020/corpus\n\n    llmctl data verify shards/ -o json"
)
AUDIT_EPILOG = "Examples:\n\n    llmctl data audit s3://bucket/corpus\n\n    llmctl data audit demo-7f3a"

UriArgument = Annotated[
    str, typer.Argument(metavar="URI", help="A data set, or a folder with several; a path or fsspec URL.")
]


def ls(
    uri: UriArgument,
    shards: Annotated[bool, typer.Option("--shards", help="List the shards, too.")] = False,
    output: OutputOption = None,
) -> None:
    """Tell what a data set holds, or list those in the folders below."""
    from llmctl.controller.cli.session import Session
    from llmctl.controller.ui.datasets import dataset_document, dataset_lines, datasets_table, shards_table
    from llmctl.storage.corpus.survey import survey

    session = Session(output=checked_output(output))
    found = survey(uri)
    if session.json:
        documents = [dataset_document(one, shards=shards) for one in found]
        session.screen.document("datasets", {"uri": found[0].store.uri, "datasets": documents})
        return
    if len(found) > 1 and not shards:
        session.screen.out.print(datasets_table(found))
        return
    for one in found:
        for line in dataset_lines(one):
            session.screen.result(line)
        if shards and one.manifest is not None:
            session.screen.out.print(shards_table(one.manifest))


def verify(uri: UriArgument, output: OutputOption = None) -> None:
    """Read every byte and compare it with the manifest; names each damaged file and its damaged bytes.

    Exit code 21 where anything differs.
    """
    from llmctl.controller.cli.session import Session
    from llmctl.storage.corpus.dataset import files_of
    from llmctl.storage.findings import damages

    session = Session(output=checked_output(output))
    _check_all(session, uri, "verify", lambda store, manifest, tell: damages(store, files_of(manifest), tell))


def audit(
    target: Annotated[
        str, typer.Argument(metavar="URI|RUN", help="A data set, or a run: its id, or a pulled run's folder.")
    ],
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Look at what the bytes mean.

    Of a data set: documents where the index says, each with its end token, ids in the vocabulary, counts as
    in the manifest, no stray file. Of a run: that each sample was used exactly once. Exit code 21 where not.
    """
    from llmctl.controller.cli.auditing import audit_of_run, is_run
    from llmctl.controller.cli.session import Session

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        if is_run(target):
            audit_of_run(session, target)
        else:
            from llmctl.storage.corpus.audit import audit as audit_dataset

            _check_all(session, target, "audit", audit_dataset)
    finally:
        session.close()


def _check_all(session: Session, uri: str, stage: str, check: Check) -> None:
    """Check every data set at `uri`, all findings on stdout; raises IntegrityError where there is any."""
    from llmctl.controller.ui.datasets import findings_document
    from llmctl.errors import IntegrityError
    from llmctl.storage.corpus.survey import survey

    results = [(one, _checked(session, one, stage, check)) for one in survey(uri)]
    if session.json:
        documents = [findings_document(one, found) for one, found in results]
        session.screen.document(stage, {"uri": uri, "datasets": documents})
    else:
        for finding in (finding for _, found in results for finding in found):
            session.screen.result(finding.problem)
    bad = [one.store.uri for one, found in results if found]
    if bad:
        count = sum(len(found) for _, found in results)
        raise IntegrityError(
            f"{', '.join(bad)}: {count} finding{'s' * (count != 1)}",
            stage=stage,
            hint="the command that made it, with --overwrite, makes it anew",
        )


def _checked(session: Session, one: DataSet, stage: str, check: Check) -> list[Finding]:
    """All that is wrong with one data set, with a byte count that moves."""
    from llmctl.controller.ui.datasets import contents
    from llmctl.controller.ui.format import size
    from llmctl.controller.ui.stages import Stages
    from llmctl.storage.findings import Finding

    if one.manifest is None:
        return [Finding(path="", problem=f"{one.store.uri}: {one.problem}")]
    with Stages(session.screen).stage(stage, one.store.uri) as shown:
        found = check(one.store, one.manifest, lambda count: shown.add_bytes("", count))
        if not found:
            shown.text = f"{one.store.uri}: {contents(one.manifest)}, {size(one.bytes)}"
    return found
