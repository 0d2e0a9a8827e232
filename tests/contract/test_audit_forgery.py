"""Who may publish into the intake can add to the trail, and silence nothing."""

from __future__ import annotations

import pytest
from nats.aio.client import Client

from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from tests.contract.audit_worlds import archiving, audited, entries, recorded
from tests.contract.conftest import ON_NATS, World
from tests.contract.test_archivist import check, put


def told(env: str, kind: str, stream: str, at: str = "2026-11-28T17:00:00Z") -> dict[str, str]:
    """Headers by which a stream tells that it stored what is very late."""
    subject = f"agents.{env}.{kind}.desk.count"
    return {"Nats-Subject": subject, "Nats-Stream": stream, "Nats-Sequence": "999999999999", "Nats-Time-Stamp": at}


@ON_NATS
@pytest.mark.parametrize("kind", ["sent", "action"])
@pytest.mark.parametrize("stream", ["lite", "tasks"])
async def test_what_any_client_may_file_moves_no_stream_ahead(
    world: World, bare: Client, kind: str, stream: str
) -> None:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    env, names = wiring.settings.env, StreamNames(wiring.settings.env)
    trail = await audited(wiring, "full")
    async with archiving(wiring.settings):
        headers = told(env, kind, getattr(names, stream))
        await bare.publish(f"agents.{env}.filed.{kind}.desk.count", b"{}", headers=headers)
        (added,) = await recorded(trail, 1, kind=kind)
        await put(wiring, *range(3))
        await check(trail, 3)
    assert "stream" not in added


@ON_NATS
async def test_who_tells_in_the_place_of_the_work_queue_silences_nothing(world: World, bare: Client) -> None:
    wiring = (await world.join("caller")).place
    assert isinstance(wiring, Wiring)
    env, names = wiring.settings.env, StreamNames(wiring.settings.env)
    trail = await audited(wiring, "full")
    async with archiving(wiring.settings):
        for headers in (
            told(env, "task", names.lite),
            told(env, "task", names.tasks, at="0001-01-01T00:00:00"),
            told(env, "task", names.tasks),
        ):
            await bare.publish(f"agents.{env}.filed.task.desk.count", b"{}", headers=headers)
        # An added entry, and a gap that is none.
        await recorded(trail, 1, kind="task")
        await put(wiring, *range(3))
        tasks, results = await recorded(trail, 4, kind="task"), await recorded(trail, 3, kind="result")
        assert [each.get("id") for each in tasks] == [None, "task-0", "task-1", "task-2"]
        assert [each["task"] for each in results] == ["task-0", "task-1", "task-2"]
        assert {each["stream"] for each in await entries(trail, kind="gap")} == {names.tasks}
