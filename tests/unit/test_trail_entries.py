"""Whatever a message holds, its entry can be read; and one that can't be read keeps nobody from the others."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from squadron.bridge.audit.chain import Link, SealedBatch, sealed
from squadron.bridge.audit.history import Wanted
from squadron.bridge.audit.records import Record, RecordMaker
from squadron.bridge.audit.redaction import Redaction
from squadron.bridge.audit.tables import write_parquet
from squadron.bridge.jetstream.intake import Caught
from squadron.cli.audit_views import _line


def deep(levels: int, opens: bytes = b'{"a":', closes: bytes = b"}") -> bytes:
    return b'{"a":' + opens * (levels - 1) + b"1" + closes * (levels - 1) + b"}"


def stored(*messages: bytes) -> SealedBatch:
    maker = RecordMaker(Redaction(), b"key")
    caught = [Caught("agents.dev.task.desk.echo", data, {}, at=7.0) for data in messages]
    records = [maker.record(each, contents=True, chunks=True) for each in caught]
    batch = sealed(Link(first=5, at=9.0), [each for each in records if each is not None])
    return SealedBatch.unpacked(batch.packed(), batch.head)


def no_json(constant: str) -> Any:
    raise AssertionError(constant)


@pytest.mark.parametrize(
    "data",
    [
        *(deep(levels) for levels in (199, 200, 201, 2_000)),
        *(deep(levels, b"[", b"]") for levels in (200, 201)),
        *(b'{"a":%b}' % (b"9" * digits) for digits in (25, 4_300, 4_301)),
        b'{"a":[NaN,Infinity,-Infinity,1e999,-1e999,-0.0,5e-324]}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\udc00"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"\\u0000":"\\u0000\\u2028\\n"}',
        b'{"a":"\n"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"at":1,"kind":2,"n":3}',
        b"[1]",
        b"\xff\x00",
        b"NaN",
        b"",
    ],
    ids=lambda data: f"{data[:24]!r}-{len(data)}",
)
def test_the_entry_of_any_message_can_be_read(data: bytes) -> None:
    batch = stored(data, b'{"id":"next"}')
    entry, following = batch.entries()
    assert entry == {"n": 5, **json.loads(batch.records[0], parse_constant=no_json)}
    assert (entry["kind"], entry["bytes"], following["id"]) == ("task", len(data), "next")
    assert ("message" in entry) == bool(data)


def test_numbers_that_json_has_not_are_kept_as_texts() -> None:
    entry, *_ = stored(b'{"a":[NaN,-Infinity,1e999],"password":NaN}').entries()
    assert entry["message"] == {"a": ["NaN", "-Infinity", "Infinity"], "password": "[secret]"}


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b'{"at":1.0,"kind"', b"[1]", b"null", b"\xff", b'{"kind":"task"}'),
        *(b'{"at":%b,"kind":"task"}' % at for at in (b'"now"', b"NaN", b"1e99", b"-1e99")),
        b'{"at":1.0,"kind":"task","message":' + deep(100_000) + b"}",
    ],
    ids=lambda line: repr(line[:30]),
)
def test_an_entry_that_can_not_be_read_is_told_as_one(line: bytes) -> None:
    batch = stored(b'{"id":"before"}', b"{}", b'{"id":"after"}')
    first, before, _, after = batch.lines
    spoiled = SealedBatch((first, before, line, after), batch.head).entries()

    assert [each.get("id", each["kind"]) for each in spoiled] == ["before", "unreadable", "after"]
    assert (spoiled[1]["n"], spoiled[1]["at"]) == (6, 9.0)
    assert [each["n"] for each in spoiled if Wanted(since=8.0).fits(each)] == [6]
    assert spoiled[1]["why"] in _line(spoiled[1])
    pq = pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    assert asyncio.run(write_parquet(each_of(spoiled), file)) == 3
    assert pq.read_table(file).column("kind").to_pylist() == ["task", "unreadable", "task"]


async def each_of(records: list[Record]) -> AsyncIterator[Record]:
    for record in records:
        yield record
