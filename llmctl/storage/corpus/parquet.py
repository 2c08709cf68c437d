"""Documents out of parquet files, by pyarrow, which only this module imports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmctl.errors import ConfigError, IntegrityError
from llmctl.storage.corpus.sources import SourceFile, no_such_field
from llmctl.storage.files import open_store

_BATCH_ROWS = 1024


def row_groups(file: SourceFile, field: str) -> list[int]:
    """Stored bytes of each row group.

    Raises:
        ConfigError: no column `field`, or pyarrow is not installed.
        IntegrityError: not a parquet file.
    """
    with _opened(file) as parquet:
        if field not in parquet.schema_arrow.names:
            raise no_such_field(file.uri, field, parquet.schema_arrow.names)
        return [parquet.metadata.row_group(i).total_byte_size for i in range(parquet.num_row_groups)]


def texts(file: SourceFile, group: int, field: str) -> Iterator[str]:
    """Column `field` of one row group, row by row, in bounded memory.

    Raises:
        ConfigError: a value that is no text.
        IntegrityError: not a parquet file, or a damaged one.
    """
    with _opened(file) as parquet:
        row = sum(parquet.metadata.row_group(i).num_rows for i in range(group))
        batches = parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[field], use_threads=False)
        for batch in batches:
            for value in batch.column(0).to_pylist():
                row += 1
                if not isinstance(value, str):
                    raise ConfigError(
                        f"{file.uri}: row {row}: `{field}` is {type(value).__name__}, not text",
                        hint="choose another column with --field, or drop these rows",
                    )
                yield value


@contextmanager
def _opened(file: SourceFile) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ConfigError(
            f"{file.uri}: reading parquet needs pyarrow", hint="pip install 'llmctl[parquet]'"
        ) from None
    with open_store(file.root).open_read(file.path) as stream:
        try:
            yield parquet.ParquetFile(stream)
        except ArrowException as error:
            raise IntegrityError(f"{file.uri}: not a whole parquet file: {error}") from error
