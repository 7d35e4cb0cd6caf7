"""Tables in sealed Parquet files that pandas reads as they are, with words of ours, as JSON, in their metadata."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mtrlib import sealed


def write(path: Path, rows: pd.DataFrame, words: dict[str, Any], **options) -> None:
    """Seal a table at `path`; `options` are of `pyarrow.parquet.write_table`."""
    sealed.seal(path, content(rows, {"mtrlib": json.dumps(words)}, **options))


def read(path: Path, what: str = "table of a store") -> tuple[pd.DataFrame, dict[str, Any]]:
    """What `write` wrote: the table and the words. Raises `sealed.Damaged`, also where it is no such file."""
    whole = sealed.read(path)
    try:
        found = pq.read_table(io.BytesIO(whole))
        return found.to_pandas(), dict(json.loads(found.schema.metadata[b"mtrlib"]))
    except (pa.ArrowException, ValueError, LookupError, TypeError) as error:
        raise sealed.Damaged(path, f"it is no {what} ({error})") from error


def content(rows: pd.DataFrame, metadata: dict[str, str], **options) -> bytes:
    """The bytes of a Parquet file."""
    table, buffer = pa.Table.from_pandas(rows, preserve_index=False), io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata}), buffer, **options)
    return buffer.getvalue()
