"""What becomes of a trail that is old, large, or lost."""

from __future__ import annotations

import itertools
from pathlib import Path

from squadron.bridge.audit.history import verify_file
from squadron.bridge.jetstream.audit_streams import AuditPolicy, set_policy
from squadron.bridge.jetstream.stream_configs import StreamNames, Streams
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
