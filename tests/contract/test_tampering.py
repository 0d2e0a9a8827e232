"""A trail that somebody has written anew is found out, and `verify` says which entries are another."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from squadron.bridge.audit.chain import SealedBatch, head_after, sealed
from squadron.bridge.audit.history import AuditTrail, batches_in, verify_file
from squadron.bridge.jetstream.audit_streams import audit_subject, make_trail
from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.errors import ConfigError, InvalidMessageError
from tests.contract.audit_worlds import archiving, audited, entries, recorded
from tests.contract.conftest import ON_NATS, World


@dataclass
class Copy:
    """A trail of three batches of four entries each, and where to bring another version of it."""

    wiring: Wiring
    batches: list[SealedBatch]
    anchors: Path
    anchored: int

    async def of(self, batches: list[SealedBatch]) -> AuditTrail:
        """These batches as the trail of another environment on the same server."""
        names = StreamNames(f"{self.wiring.settings.env}-copy")
        await make_trail(self.wiring.connection, names)
        journal = JetStreamJournal(self.wiring.connection, f"squadron-{names.environment}-audit")
        for batch in batches:
            await journal.append(audit_subject(names), batch.packed(), msg_id=batch.head)
        return AuditTrail(self.wiring.connection, names, self.wiring.settings.home)


@pytest.fixture
async def copy(world: World) -> Copy:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "full")
    async with archiving(wiring.settings):
        for n in range(12):
            await wiring.caller.sender.publish_durable("desk.said", n)
            if n % 4 == 3:
                await recorded(trail, n + 1, kind="event")
    file = io.BytesIO()
    assert await trail.export(file) == 12
    file.seek(0)
    batches = list(batches_in(file))
    assert len(batches) >= 3
    return Copy(wiring, batches, trail.anchor_file, 12)


def line(batch: SealedBatch, at: int, change: Callable[[bytes], bytes]) -> SealedBatch:
    """The batch with one line another."""
    lines = list(batch.lines)
    lines[at] = change(lines[at])
    return replace(batch, lines=tuple(lines))


def swapped(batch: SealedBatch) -> SealedBatch:
    first, one, two, *rest = batch.lines
    return replace(batch, lines=(first, two, one, *rest))


def resealed(batch: SealedBatch, previous: str = "") -> SealedBatch:
    """The batch made anew as an archivist would, after another head: what a forger who knows us does."""
    link, _ = batch.link()
    records = [json.loads(each) for each in batch.records]
    return sealed(replace(link, previous=previous or link.previous), records)


def exported(batches: list[SealedBatch]) -> bytes:
    """As an export has them."""
    return b"".join(b"\n".join(each.lines) + b'\n{"head": "%s"}\n' % each.head.encode() for each in batches)


FORGE = b'"subject":"agents.forged.'


def forged(at: int) -> Callable[[SealedBatch], SealedBatch]:
    return lambda batch: line(batch, at, lambda it: it.replace(b'"subject":"agents.', FORGE))


@ON_NATS
async def test_a_copy_as_it_was_is_right_and_held_against_the_anchors(copy: Copy) -> None:
    found = await (await copy.of(copy.batches)).verify(anchors=copy.anchors)
    assert (found.ok, found.first, found.last, found.unproven) == (True, 1, 12, ())
    assert found.anchors >= 1


@ON_NATS
@pytest.mark.parametrize(
    ("tamper", "what"),
    [
        (lambda all: [all[0], forged(2)(all[1]), *all[2:]], "changed"),
        (lambda all: [all[0], replace(all[1], lines=all[1].lines[:2] + all[1].lines[3:]), *all[2:]], "missing"),
        (lambda all: [all[0], swapped(all[1]), *all[2:]], "reordered"),
        (
            lambda all: [all[0], replace(all[1], lines=(*all[1].lines, b"{}")), *all[2:]],
            "added",
        ),
    ],
    ids=["changed", "missing", "reordered", "added"],
)
async def test_an_entry_that_is_changed_taken_out_or_moved_is_named(
    copy: Copy, tamper: Callable[[list[SealedBatch]], list[SealedBatch]], what: str
) -> None:
    found = await (await copy.of(tamper(copy.batches))).verify()
    (fault,) = found.faults
    first = copy.batches[1].link()[0].first
    last = first + len(copy.batches[1].records) - 1
    one = (first + 1, first + 1)
    wanted = {"changed": one, "missing": one, "reordered": (first, first + 1), "added": (first, last)}
    assert (fault.what, fault.first, fault.last) == (what, *wanted[what])


@ON_NATS
async def test_a_batch_that_is_taken_out_or_moved_is_named(copy: Copy) -> None:
    one, two, three, *rest = copy.batches
    (fault,) = (await (await copy.of([one, three, *rest])).verify()).faults
    first, last = two.link()[0].first, three.link()[0].first - 1
    assert (fault.what, fault.first, fault.last) == ("missing", first, last)
    file = Path(copy.wiring.settings.home) / "moved.jsonl"
    file.write_bytes(exported([one, three, two, *rest]))
    assert {each.what for each in verify_file(file).faults} >= {"missing", "reordered"}


@ON_NATS
async def test_a_batch_that_was_sealed_anew_does_not_fit_what_comes_after_it(copy: Copy) -> None:
    one, two, three, *rest = copy.batches
    again = resealed(forged(1)(two))
    found = await (await copy.of([one, again, three, *rest])).verify()
    assert [each.what for each in found.faults] == ["rewritten"]
    assert "another head" in found.faults[0].why


@ON_NATS
async def test_a_cut_tail_and_a_whole_new_chain_show_by_the_anchors_alone(copy: Copy) -> None:
    short = copy.batches[:-1]
    trail = await copy.of(short)
    assert (await trail.verify()).ok
    (fault,) = [each for each in (await trail.verify(anchors=copy.anchors)).faults if each.last == 12]
    assert (fault.what, fault.first) == ("cut", short[-1].link()[0].first + len(short[-1].records))
    chain, previous = [], ""
    for batch in [forged(1)(copy.batches[0]), *copy.batches[1:]]:
        chain.append(resealed(batch, previous))
        previous = chain[-1].head
    file = copy.anchors.with_name("new.jsonl")
    file.write_bytes(exported(chain))
    assert verify_file(file).ok
    assert {each.what for each in verify_file(file, anchors=copy.anchors).faults} == {"rewritten"}


@ON_NATS
async def test_an_anchor_that_somebody_else_signed_counts_for_nothing(copy: Copy) -> None:
    lines = copy.anchors.read_text().splitlines()
    said = json.loads(lines[-1])
    bad = copy.anchors.with_name("bad.jsonl")
    bad.write_text(json.dumps(said | {"count": 999}) + "\nno JSON\n")
    found = await (await copy.of(copy.batches)).verify(anchors=bad, public_key=said["key"])
    assert (found.ok, found.anchors, len(found.unproven)) == (True, 0, 2)
    with pytest.raises(ConfigError, match="can't be read"):
        await (await copy.of([])).verify(anchors=copy.anchors.with_name("not there"))


@ON_NATS
async def test_an_export_is_brought_in_elsewhere_and_verifies_there(copy: Copy, tmp_path: Path) -> None:
    file = io.BytesIO()
    trail = AuditTrail(copy.wiring.connection, StreamNames(copy.wiring.settings.env), tmp_path)
    await trail.export(file)
    elsewhere = AuditTrail(copy.wiring.connection, StreamNames(f"{copy.wiring.settings.env}-other"), tmp_path)
    file.seek(0)
    assert await elsewhere.restore(file) == 12
    assert await entries(elsewhere) == await entries(trail)
    assert (await elsewhere.verify(anchors=copy.anchors)).ok
    file.seek(0)
    with pytest.raises(ConfigError, match="has a trail already"):
        await elsewhere.restore(file)
    with pytest.raises(InvalidMessageError, match="middle"):
        list(batches_in(io.BytesIO(file.getvalue()[:-100])))


@ON_NATS
async def test_each_head_of_a_count_may_be_the_one_that_was_anchored(copy: Copy) -> None:
    *_, last = copy.batches
    link, _ = last.link()
    # What the archivist stores when it has passed over much, or nothing came for long.
    empty = sealed(replace(link, first=13, previous=last.head), [])
    found = await (await copy.of([*copy.batches, empty])).verify(anchors=copy.anchors)
    assert (found.ok, found.last) == (True, 12), found
    assert found.anchors >= 1


@ON_NATS
async def test_what_is_no_batch_at_all_is_a_fault_and_the_rest_is_looked_at(copy: Copy) -> None:
    one, *rest = copy.batches
    trail = await copy.of([one])
    names = StreamNames(f"{copy.wiring.settings.env}-copy")
    journal = JetStreamJournal(copy.wiring.connection, f"squadron-{names.environment}-audit")
    await journal.append(audit_subject(names), b"rubbish", msg_id="rubbish")
    await journal.append(audit_subject(names), zlib.compress(b"[]\n{}"), msg_id="rubbish 2")
    for batch in rest:
        await journal.append(audit_subject(names), batch.packed(), msg_id=batch.head)
    found = await trail.verify(anchors=copy.anchors)
    assert [each.what for each in found.faults] == ["changed", "changed"]
    assert found.last == 12


def test_the_head_is_what_the_page_says() -> None:
    """The chain as it is documented, computed by hand."""
    from hashlib import sha256

    batch = SealedBatch((b"first", b"one", b"two"), "")
    head = bytes(32)
    for each in (b"one", b"two", b"first"):
        head = sha256(head + sha256(each).digest()).digest()
    assert head_after("0" * 64, batch.lines) == head.hex()
