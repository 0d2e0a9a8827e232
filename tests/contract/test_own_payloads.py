"""Large payloads where each principal has a place of its own for them, and nobody but the bridge removes any."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squadron import Agent, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.stream_names import StreamNames
from squadron.bridge.jetstream.vault import ERASED_AT_ONCE
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ClaimLostError
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.ports.vault import name_of
from squadron.runtime.wire.envelope import AgentIdentity
from tests.contract.conftest import until
from tests.contract.restricted import RestrictedServer

LARGE = "x" * 600_000
NAMES = StreamNames("test")


class Librarian(Agent):
    """Gives back what it got, once it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()

    @topic("book.copy")
    async def copy(self, text: str) -> str:
        """Copy a book."""
        await self.let.wait()
        return text


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RestrictedServer]:
    made = RestrictedServer(tmp_path, "test")
    made.start()
    yield made
    made.stop()


async def _held(bridge: Wiring) -> dict[str, int]:
    """What is in the bucket: messages by subject, without what all subjects there begin with."""
    info = await bridge.connection.api(f"STREAM.INFO.OBJ_{NAMES.bucket}", {"subjects_filter": ">"})
    subjects: dict[str, int] = info["state"].get("subjects") or {}
    return {subject.removeprefix(f"$O.{NAMES.bucket}."): count for subject, count in subjects.items()}


async def test_a_large_task_and_its_answer_stand_with_their_senders_and_the_input_is_removed(
    server: RestrictedServer,
) -> None:
    bridge = await server.open("bridge", "bridge")
    spec = AgentSpec.of(Librarian)
    await bridge.ports.queue.declare(Mailbox(spec.name, ("book.copy",), 30.0))
    await bridge.registry.advertise(spec.card())
    place = await server.open("agent", spec.name)
    ann = await server.open("client", "client")
    librarian = Librarian()
    host = Host(place, librarian, spec, slots=4)
    await host.start()
    await ann.registry.catch_up()

    handle = await ann.caller.submit("book.copy", {"text": LARGE}, AskOptions(within_s=30))
    assert {each.rpartition(".")[0] for each in await _held(bridge)} == {"C.client", "M.client"}
    librarian.let.set()
    assert (await handle.outcome()).unwrap() == LARGE
    told = await ann.ports.lite.last(handle.reply_to)
    # All askers may read answers: with its salt each of them could have it removed.
    assert told is not None
    assert json.loads(told.data)["payload"]["claim"].get("salt") is None

    async def only_the_answer() -> bool:
        return {each.rpartition(".")[0] for each in await _held(bridge)} == {"C.librarian", "M.librarian"}

    await until(only_the_answer)
    await host.stop(1)
    for each in (ann, place, bridge):
        await each.aclose()
    assert not server.violations()


async def test_what_was_stored_among_all_others_is_read_and_removed_as_before(server: RestrictedServer) -> None:
    bridge = await server.open("bridge", "bridge")
    ann = await server.open("client", "client")
    name = await bridge.ports.claims.vault.store(b"of old", keep_s=600, key="the key")
    assert "." not in name

    assert await ann.ports.claims.vault.fetch(name) == b"of old"
    await ann.ports.claims.vault.drop(name, "the key")

    async def empty() -> bool:
        return not await _held(bridge)

    await until(empty)
    for each in (ann, bridge):
        await each.aclose()
    assert not server.violations()


@pytest.mark.parametrize(
    "wish",
    [
        {"key": "another"},
        {"key": ["the key"]},
        {},
        {"key": "the key", "name": "client.*"},
        {"key": "the key", "name": ">"},
    ],
    ids=["another key", "no text", "no key", "a pattern", "all"],
)
async def test_who_has_not_the_key_has_nothing_removed(server: RestrictedServer, wish: dict[str, Any]) -> None:
    bridge = await server.open("bridge", "bridge")
    ann = await server.open("client", "client")
    name = await ann.ports.claims.vault.store(b"hers", keep_s=600, key="the key")
    barrier = await ann.ports.claims.vault.store(b"to wait for", keep_s=600, key="of the barrier")

    await ann.connection.publish(NAMES.forget, json.dumps({"name": name, **wish}).encode())
    await ann.connection.publish(NAMES.forget, b"[")
    await ann.ports.claims.vault.drop(barrier, "of the barrier")

    async def is_gone() -> bool:
        return not any(barrier.rpartition(".")[2] in each for each in await _held(bridge))

    await until(is_gone)
    assert await ann.ports.claims.vault.fetch(name) == b"hers"
    for each in (ann, bridge):
        await each.aclose()


async def test_a_store_that_breaks_off_leaves_nothing(
    server: RestrictedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = await server.open("bridge", "bridge")
    ann = await server.open("client", "client")
    monkeypatch.setattr("squadron.bridge.jetstream.vault.CHUNK_BYTES", 1024)
    storing = asyncio.create_task(ann.ports.claims.vault.store(b"x" * 10_000_000, keep_s=600))

    async def begun() -> bool:
        return bool(await _held(bridge))

    async def empty() -> bool:
        return not await _held(bridge)

    await until(begun)
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing
    await until(empty)
    for each in (ann, bridge):
        await each.aclose()


async def test_headers_that_empty_the_bucket_are_refused_once_the_bridge_was_there(
    server: RestrictedServer,
) -> None:
    # As an older bridge left it.
    shared = replace(server.settings("bridge", "bridge"), nats_own="")
    old = await Wiring.open(shared, AgentIdentity(id="old"), create=True)
    name = await old.ports.claims.vault.store(b"of old", keep_s=600)
    info = await old.connection.api(f"STREAM.INFO.OBJ_{NAMES.bucket}", {})
    assert info["config"]["allow_rollup_hdrs"]
    await old.aclose()

    bridge = await server.open("bridge", "bridge")
    info = await bridge.connection.api(f"STREAM.INFO.OBJ_{NAMES.bucket}", {})
    assert not info["config"].get("allow_rollup_hdrs")
    assert await bridge.ports.claims.vault.fetch(name) == b"of old"
    with pytest.raises(ClaimLostError):
        await bridge.ports.claims.vault.fetch("client." + "0" * 64)
    await bridge.aclose()


async def test_a_flood_of_wishes_costs_the_bridge_few_tasks_and_what_is_wished_after_it_is_removed(
    server: RestrictedServer,
) -> None:
    bridge = await server.open("bridge", "bridge")
    ann = await server.open("client", "client")
    name = await ann.ports.claims.vault.store(b"hers", keep_s=600, key="the key")
    for number in range(2_000):
        wish = {"name": f"client.{name_of(str(number))}", "key": str(number)}
        await ann.connection.publish(NAMES.forget, json.dumps(wish).encode())
    await ann.ports.claims.vault.drop(name, "the key")
    most = 0

    async def is_gone() -> bool:
        nonlocal most
        most = max(most, sum(each.get_name().startswith("forget") for each in asyncio.all_tasks()))
        return not await _held(bridge)

    await until(is_gone, within_s=60.0)
    assert most == ERASED_AT_ONCE
    for each in (ann, bridge):
        await each.aclose()
