"""What becomes of a trail that is old, large, or lost."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from squadron.bridge.audit.chain import Link, SealedBatch, sealed
from squadron.bridge.audit.history import verify_file
from squadron.bridge.jetstream.audit_streams import DAY_S, AuditPolicy, audit_stream, audit_subject, set_policy
from squadron.bridge.jetstream.intake import Intake
from squadron.bridge.jetstream.journal import JetStreamJournal
from squadron.bridge.jetstream.stream_configs import StreamNames, Streams, ask_for
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.wire.envelope import AgentIdentity
from tests.contract.audit_worlds import archiving, audited, entries, recorded
from tests.contract.conftest import ON_NATS, World, until
from tests.contract.own_server import OwnServer
from tests.contract.test_archivist import put

#: Some batches of what a fast machine puts in the time of one: a batch that is larger than all is not stored.
MOST_BYTES = 40_000


@ON_NATS
async def test_entries_lapse_by_age_and_what_is_left_is_proven(world: World) -> None:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    # Three seconds.
    trail = await audited(wiring, "full", keep_days=3 / 86_400)
    async with archiving(wiring.settings):
        await put(wiring, 0)
        await recorded(trail, 2)
        numbers = iter(range(1, 1_000))

        async def first_lapsed() -> bool:
            await put(wiring, next(numbers))
            found = await entries(trail)
            return bool(found) and found[0]["n"] > 2

        await until(first_lapsed)
        found = await trail.verify()
    assert found.ok, found
    assert found.first > 2
    assert found.anchors > 0


@ON_NATS
@pytest.mark.parametrize("anchored", [True, False], ids=["anchored", "no_anchors"])
async def test_a_trail_of_which_all_has_lapsed_goes_on_after_its_last_anchor(world: World, anchored: bool) -> None:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "full")
    async with archiving(wiring.settings):
        await put(wiring, *range(3))
        await recorded(trail, 6)
    # Two seconds: all of it is older soon, and nobody is there to store anything.
    await audited(wiring, "full", keep_days=2 / 86_400)
    stream = audit_stream(StreamNames(wiring.settings.env))

    async def all_lapsed() -> bool:
        return not (await ask_for(wiring.connection, f"STREAM.INFO.{stream}"))["state"]["messages"]

    async def is_no_fault() -> bool:
        found = await trail.verify()
        return (found.faults, found.unproven) == ((), ("all that the anchors are about has lapsed",))

    await until(all_lapsed)
    await until(is_no_fault)
    await audited(wiring, "full")
    if not anchored:
        trail.anchor_file.unlink()
    async with archiving(wiring.settings):
        await put(wiring, *range(3, 6))
        await recorded(trail, 2, task="task-5")
    # What was not purged of the intake may come once more.
    tasks = await entries(trail, kind="task")
    assert [each["id"] for each in tasks[-3:]] == ["task-3", "task-4", "task-5"]
    assert await entries(trail, kind="gap") == []
    found = await trail.verify()
    assert (found.ok, found.first) == (True, 7 if anchored else 1), found
    assert found.anchors > 0


@ON_NATS
async def test_a_batch_without_entries_is_stored_before_the_newest_lapses(world: World) -> None:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    names = StreamNames(wiring.settings.env)
    trail = await audited(wiring, "full", keep_days=10.0)
    intake = Intake(wiring.connection, names)
    made_at, before, *_ = await intake.look()
    # As an archivist left it five days ago.
    link = Link(at=time.time() - 5 * DAY_S, intake=(0, made_at), cursors=before)
    left = sealed(link, [{"at": link.at, "kind": "note", "subject": "agents.note"}])
    await intake.append(left.packed(), left.head, after=0)

    async def is_renewed() -> bool:
        last = await intake.last()
        return last is not None and last.seq > 1

    async with archiving(wiring.settings):
        await until(is_renewed)
        await put(wiring, 0)
        await recorded(trail, 3)
    stored = JetStreamJournal(wiring.connection, names.audit).read(audit_subject(names))
    one, empty, *rest = [len(SealedBatch.unpacked(each.data, "").records) async for each in stored]
    # Once, and not again and again.
    assert (one, empty, sum(rest), 0 in rest) == (1, 0, 2, False)
    found = await trail.verify()
    assert (found.ok, found.first, found.last) == (True, 1, 3), found


@ON_NATS
async def test_the_oldest_entries_go_when_the_trail_is_full(world: World) -> None:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    trail = await audited(wiring, "full", max_bytes=MOST_BYTES)
    async with archiving(wiring.settings):
        numbers = itertools.count()

        async def some_went() -> bool:
            await put(wiring, next(numbers))
            found = await entries(trail)
            return bool(found) and found[0]["n"] > 1

        await until(some_went)
        found = await trail.verify()
        status = await trail.status()
    assert found.ok, found
    assert found.first > 1
    assert status["trail_bytes"] <= MOST_BYTES


async def test_a_trail_whose_store_was_lost_is_told_by_its_anchors_and_goes_on(tmp_path: Path) -> None:
    server = OwnServer(tmp_path)
    server.start()
    settings = Settings(home=tmp_path / "home", env="lost", nats_url=server.url, heartbeat_s=0.5)
    wiring = await Wiring.open(settings, AgentIdentity(id="caller", type="test"), create=True)
    names = StreamNames(settings.env)
    try:
        streams = Streams(wiring.connection, names)
        await streams.keep()
        trail = await audited(wiring, "full")
        async with archiving(settings):
            await put(wiring, *range(10))
            await recorded(trail, 20)
            file = tmp_path / "trail.jsonl"
            with file.open("wb") as out:
                await trail.export(out)

            async def anchored() -> bool:
                return (await trail.status()).get("anchored") == 20

            await until(anchored)
            before = tmp_path / "before.jsonl"
            before.write_bytes(trail.anchor_file.read_bytes())
            server.lose_store()

            async def audited_again() -> bool:
                # What the bridge does when it notices, with the policy that it knows.
                try:
                    await streams.keep()
                    await set_policy(wiring.connection, names, AuditPolicy("full"))
                except BusUnavailableError:
                    return False
                return True

            await until(audited_again)
            await put(wiring, 10, 11)
            tasks = await recorded(trail, 2, kind="task")
            assert [each["id"] for each in tasks] == ["task-10", "task-11"]
            found = await trail.verify()
        assert not found.ok
        assert {each.what for each in found.faults} <= {"cut", "rewritten"}
        assert max(each.last for each in found.faults) == 20
        # The copies that were taken before are what they were, and prove each other.
        kept = verify_file(file, anchors=before)
        assert kept.ok
        assert (kept.last, kept.anchors > 0) == (20, True)
    finally:
        await wiring.aclose()
        server.stop()
