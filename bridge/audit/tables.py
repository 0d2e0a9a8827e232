"""The trail as a table, for what reads Parquet: entries alone, without what proves them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from squadron.bridge.audit.records import Record
from squadron.runtime.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

#: Columns of text, named as the fields of an entry.
_TEXTS = (
    "kind",
    "subject",
    "stream",
    "id",
    "task",
    "parent",
    "conversation",
    "source",
    "agent",
    "replyTo",
    "outcome",
)
#: Columns of whole numbers.
_NUMBERS = ("n", "seq", "until", "bytes")
#: What differs from entry to entry is in a column of JSON.
_JSON = ("action", "message")
#: So many entries are held in memory, and make a row group; some megabytes.
_ROWS = 10_000


async def write_parquet(records: AsyncIterator[Record], file: IO[bytes]) -> int:
    """Write entries as a Parquet file; returns how many.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        hint = "pip install 'squadron-ray[parquet]', or export as jsonl"
        raise ConfigError(f"Parquet needs pyarrow, which can't be imported: {error}", hint=hint) from None
    schema = pa.schema(
        [
            *((name, pa.int64()) for name in _NUMBERS),
            ("at", pa.timestamp("us", tz="UTC")),
            *((name, pa.string()) for name in (*_TEXTS, "hmac")),
            ("entries", pa.list_(pa.string())),
            *((name, pa.string()) for name in _JSON),
        ]
    )
    count, rows = 0, list[Record]()
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        async for record in records:
            rows.append(_row(record))
            count += 1
            if len(rows) == _ROWS:
                writer.write_table(_table(rows, schema))
                rows.clear()
        writer.write_table(_table(rows, schema))
    return count


def _row(record: Record) -> dict[str, Any]:
    written = {name: json.dumps(record[name], ensure_ascii=False) for name in _JSON if name in record}
    return record | written | {"at": round(record["at"] * 1e6)}


def _table(rows: Sequence[Record], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=schema)
