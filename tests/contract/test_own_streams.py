"""What agents keep for themselves, where they have streams of their own, and what was kept before they had."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from squadron.actors.runs.shelf import Runs
from squadron.bridge.auth.roles import Role
from squadron.bridge.jetstream.former_streams import until_asked
from squadron.bridge.jetstream.link.at_home import OF_ALL
from squadron.bridge.jetstream.storage import storage
from squadron.bridge.jetstream.stream_configs import ask_for
from squadron.bridge.jetstream.stream_names import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.errors import BusUnavailableError
from squadron.runtime.ports.journal import Journal
from squadron.runtime.ports.lite_journal import END_HEADER
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.store.own_journal import OwnJournal, owners_of
from squadron.runtime.trust.agent_sender import SENDER_HEADER
from squadron.runtime.trust.verify_modes import VerifyMode
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.subjects import Subjects
from tests.contract.conftest import until
from tests.contract.restricted import RestrictedServer
from tests.trusted import Realm

S = Subjects("test")
CLERK = Mailbox("clerk", ("office.file",), 30.0)
MEMORY, TALK, NOTES = (S.lite(owner, "c") for owner in owners_of("clerk"))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RestrictedServer]:
    made = RestrictedServer(tmp_path, "test")
    made.admit("agent", "clerk", serves=("office.file",))
    made.start()
    yield made
    made.stop()


async def _of_old(server: RestrictedServer) -> Wiring:
    """A bridge as it was before agents had streams of their own."""
    shared = replace(server.settings("bridge", "bridge"), nats_own="")
    return await Wiring.open(shared, AgentIdentity(id="old"), create=True, ring=server.ring("clerk"))


async def _read(journal: Journal | OwnJournal, key: str) -> list[bytes]:
    return [entry.data async for entry in journal.read(key)]


async def _names(place: Wiring) -> list[str]:
    return list((await place.connection.api("STREAM.NAMES", {}))["streams"])


def _log(place: Wiring, agent: str, text: str) -> bytes:
    about = {"agent": agent, "title": text}
    return place.ports.pack("event", {"content": [text]}, conversation_id="c", metadata={"about": about})


async def test_what_was_kept_among_all_others_goes_along_and_is_nowhere_else(server: RestrictedServer) -> None:
    old = await _of_old(server)
    sealed = OwnJournal(old.ports, "clerk", sealed=True)
    for number in range(3):
        await old.ports.lite.append(MEMORY, b"%d" % number, ttl_s=600.0)
    await old.ports.lite.append(TALK, b"closed", ttl_s=600.0, headers={END_HEADER: "closed"})
    await sealed.append(NOTES, b"secret", ttl_s=600.0)
    mine, other = S.run("run-1"), S.run("run-2")
    logs = [_log(old, "clerk", text) for text in ("begun", "gone on")]
    for data in logs:
        await old.ports.runs.append(mine, data, ttl_s=600.0)
    await old.ports.runs.append(other, b"of another", ttl_s=600.0)
    await old.aclose()

    bridge = await server.open("bridge", "bridge")
    for _ in range(2):  # as each bridge that starts does
        await bridge.ports.queue.declare(CLERK)
    clerk = await server.open("agent", "clerk", serves=("office.file",))

    own = OwnJournal(clerk.ports, "clerk", sealed=True)
    assert await _read(own, MEMORY) == [b"0", b"1", b"2"]
    assert await _read(own, NOTES) == [b"secret"]
    (ended,) = [entry async for entry in clerk.ports.own.read(TALK)]
    assert (ended.key, ended.headers[END_HEADER]) == (TALK, "closed")
    assert 590 < int(ended.headers["Nats-TTL"].removesuffix("s")) <= 600
    assert await _read(clerk.ports.runs, mine) == logs
    assert not await _read(clerk.ports.runs, other)
    for key in (MEMORY, TALK, NOTES):
        assert not await _read(bridge.ports.lite, key)

    # Who may look at runs sees each of them once, and how it goes on.
    ann = await server.open("client", "client", id="ann")
    await clerk.ports.runs.append(mine, b"more", ttl_s=600.0)

    async def told() -> bool:
        return await _read(ann.ports.runs, mine) == [*logs, b"more"]

    await until(told)
    assert await _read(ann.ports.runs, other) == [b"of another"]
    for place in (ann, clerk, bridge):
        await place.aclose()
    assert not server.violations()


Join = Callable[..., Awaitable[Wiring]]


@pytest.fixture
def join(settings: Settings, tmp_path: Path) -> Join:
    """Opens the place of somebody who signs, and looks who signed what."""
    realm, trust = Realm(), tmp_path / "trust.json"
    trust.write_bytes(realm.document())

    async def joined(name: str, role: Role, verify: VerifyMode = "require", **more: Any) -> Wiring:
        creds = realm.write(tmp_path, name, role)
        own = replace(settings, trust=trust, nats_user_credentials=creds, verify=verify, **more)
        return await Wiring.open(own, AgentIdentity(id=name), create=True)

    return joined


async def test_what_others_wrote_among_it_is_not_brought_and_what_the_agent_signed_is(
    settings: Settings, join: Join
) -> None:
    subjects = Subjects(settings.env)
    old, mallory = await join("clerk", "agent"), await join("mallory", "agent")
    bare = await Wiring.open(settings, AgentIdentity(id="nobody"), create=True)
    memory, run, forged_run = subjects.lite("memory-clerk", "c"), subjects.run("run-1"), subjects.run("run-2")
    log, forged = _log(old, "clerk", "begun"), _log(mallory, "clerk", "forged")
    await old.ports.lite.append(memory, b"mine", ttl_s=600.0)
    await mallory.ports.lite.append(memory, b"forged", ttl_s=600.0)
    await old.ports.lite.append(memory, b"mine, too", ttl_s=600.0)
    [said, *_] = [entry async for entry in old.ports.lite.read(memory)]
    again = {SENDER_HEADER: said.headers[SENDER_HEADER]}
    await bare.ports.lite.append(memory, said.data, ttl_s=600.0, headers=again)
    await old.ports.runs.append(run, log, ttl_s=600.0)
    # The newest entry says that the log is another's.
    taken = _log(mallory, "mallory", "taken")
    for key, data in ((run, forged), (run, taken), (forged_run, forged)):
        await mallory.ports.runs.append(key, data, ttl_s=600.0)
    await old.aclose()

    bridge = await join("bridge", "bridge", nats_own=OF_ALL)
    await bridge.ports.queue.declare(CLERK)
    clerk = await join("clerk", "agent", nats_own="clerk")

    assert await _read(OwnJournal(clerk.ports, "clerk", sealed=False), memory) == [b"mine", b"mine, too"]
    assert await _read(clerk.ports.runs, run) == [log]
    assert not await _read(clerk.ports.runs, forged_run)
    # What is not its own stays for those who look who signed it, and for its time.
    assert await _read(bridge.ports.lite, memory) == [b"forged", b"mine"]
    assert await _read(bridge.ports.runs, forged_run) == [forged]
    assert bridge.ports.guard is not None
    assert bridge.ports.guard.refused["own"] >= 4

    # What is told on counts as it was signed where it was kept.
    await bridge.ports.queue.declare(Mailbox("mallory", ("bad.deed",), 30.0))
    false = await join("mallory", "agent", nats_own="mallory")
    await false.ports.runs.append(subjects.run("run-3"), forged, ttl_s=600.0)
    await clerk.ports.runs.append(subjects.run("run-4"), _log(clerk, "clerk", "gone on"), ttl_s=600.0)
    ann = await join("ann", "client")

    async def told() -> bool:
        return len(await ann.ports.runs.latest(subjects.run())) == 4

    await until(told)
    runs = await Runs(ann.ports).list()
    assert {(info.run, info.title) for info in runs} == {("run-1", "begun"), ("run-4", "gone on")}
    assert await _read(false.ports.runs, run) == [taken]
    assert runs.left_out == 3  # and the one that mallory says it had in run-1
    for place in (clerk, bridge, mallory, false, ann, bare):
        await place.aclose()


async def test_one_forged_entry_moves_no_log_where_nobody_looks_who_signed_what(server: RestrictedServer) -> None:
    old, log = await _of_old(server), S.run("run-1")
    entries = [_log(old, "porter", "begun"), _log(old, "clerk", "forged")]
    for data in entries:
        await old.ports.runs.append(log, data, ttl_s=600.0)
    bridge = await server.open("bridge", "bridge")
    for mailbox in (CLERK, Mailbox("porter", ("gate.open",), 30.0)):
        await bridge.ports.queue.declare(mailbox)
    porter = await server.open("agent", "porter", serves=("gate.open",))
    clerk = await server.open("agent", "clerk", serves=("office.file",))
    assert await _read(porter.ports.runs, log) == entries
    assert not await _read(clerk.ports.runs, log)
    for place in (old, bridge, porter, clerk):
        await place.aclose()


async def test_where_it_is_only_told_of_what_another_signed_is_not_brought(settings: Settings, join: Join) -> None:
    memory = Subjects(settings.env).lite("memory-clerk", "c")
    nobody = await Wiring.open(settings, AgentIdentity(id="clerk"), create=True)
    old, mallory = await join("clerk", "agent"), await join("mallory", "agent")
    for place, data in ((nobody, b"before it signed"), (old, b"mine"), (mallory, b"forged")):
        await place.ports.lite.append(memory, data, ttl_s=600.0)
    bridge = await join("bridge", "bridge", "warn", nats_own=OF_ALL)
    await bridge.ports.queue.declare(CLERK)
    clerk = await join("clerk", "agent", nats_own="clerk")
    assert await _read(clerk.ports.own, memory) == [b"before it signed", b"mine"]
    assert await _read(bridge.ports.lite, memory) == [b"forged"]
    for place in (nobody, old, mallory, bridge, clerk):
        await place.aclose()


async def test_what_can_t_be_taken_from_where_all_read_is_tried_again(settings: Settings, join: Join) -> None:
    names, memory = StreamNames(settings.env), Subjects(settings.env).lite("memory-clerk", "c")
    old, mallory = await join("clerk", "agent"), await join("mallory", "agent")
    for place in (old, mallory):
        await place.ports.lite.append(memory, b"mine", ttl_s=600.0)
    bridge = await join("bridge", "bridge", nats_own=OF_ALL)
    lite = (await ask_for(bridge.connection, f"STREAM.INFO.{names.lite}"))["config"]
    await ask_for(bridge.connection, f"STREAM.UPDATE.{names.lite}", lite | {"deny_delete": True})

    with pytest.raises(BusUnavailableError, match="can't be deleted"):
        await bridge.ports.queue.declare(CLERK)

    # Without it, whoever makes the agent's stream again begins anew.
    assert not (await ask_for(bridge.connection, f"STREAM.INFO.{names.runs}"))["config"].get("sources")
    for place in (old, mallory, bridge):
        await place.aclose()


async def test_whoever_waits_for_what_is_told_may_begin_before_anything_is(server: RestrictedServer) -> None:
    bridge, names = await server.open("bridge", "bridge"), StreamNames("test")
    waiting = asyncio.create_task(until_asked(bridge.connection, names.runs, names.own("clerk")))
    await bridge.ports.queue.declare(CLERK)
    await waiting
    await bridge.aclose()


async def test_of_each_agent_is_told_though_the_first_logs_of_all_are_gone(server: RestrictedServer) -> None:
    bridge = await server.open("bridge", "bridge")
    for key in (S.run("run-1"), S.run("run-2")):
        await bridge.ports.runs.append(key, b"of another", ttl_s=600.0)
    await bridge.ports.runs.erase(S.run("run-1"))
    names = ("clerk", "porter", "guard")
    agents = [await server.open("agent", name, serves=(f"{name}.work",)) for name in names]
    for agent, name in zip(agents, names, strict=True):
        await bridge.ports.queue.declare(Mailbox(name, (f"{name}.work",), 30.0))
        await agent.ports.runs.append(S.run(f"run-{name}"), b"begun", ttl_s=600.0)

    async def told() -> bool:
        found = {entry.key for entry in await bridge.ports.runs.latest(S.run())}
        return found == {S.run("run-2"), *(S.run(f"run-{name}") for name in names)}

    await until(told)
    for place in (*agents, bridge):
        await place.aclose()
    assert not server.violations()


async def test_streams_that_were_called_otherwise_are_told_of_under_their_names(server: RestrictedServer) -> None:
    bridge, names = await server.open("bridge", "bridge"), StreamNames("test")
    for key in (S.run("run-1"), S.run("run-2")):
        await bridge.ports.runs.append(key, b"of another", ttl_s=600.0)
    await bridge.ports.runs.erase(S.run("run-1"))
    agents = ("clerk", "porter", "guard")
    for agent in agents:  # as they were
        mailbox = Mailbox(agent, (f"{agent}.work",), 30.0)
        with patch.object(StreamNames, "own", lambda self, agent: f"squadron-{self.environment}-own-{agent}"):
            await bridge.ports.queue.declare(mailbox)
    for agent in agents:
        await bridge.ports.queue.declare(Mailbox(agent, (f"{agent}.work",), 30.0))
        place = await server.open("agent", agent, serves=(f"{agent}.work",))
        await place.ports.runs.append(S.run(f"run-{agent}"), b"begun", ttl_s=600.0)
        await place.aclose()

    async def told() -> bool:
        found = {entry.key for entry in await bridge.ports.runs.latest(S.run())}
        return found == {S.run("run-2"), *(S.run(f"run-{agent}") for agent in agents)}

    await until(told)
    sources = (await ask_for(bridge.connection, f"STREAM.INFO.{names.runs}"))["config"]["sources"]
    assert [each["name"] for each in sources] == [names.own(agent) for agent in agents]
    await bridge.aclose()


async def test_an_agent_forgets_in_its_own_stream_and_is_fenced_there(server: RestrictedServer) -> None:
    bridge = await server.open("bridge", "bridge")
    await bridge.ports.queue.declare(CLERK)
    clerk = await server.open("agent", "clerk", serves=("office.file",))

    first = await clerk.ports.own.append(MEMORY, b"1", ttl_s=600.0, msg_id="1", expect_seq=0)
    assert await clerk.ports.own.append(MEMORY, b"2", ttl_s=600.0, expect_seq=first) > first
    assert (last := await clerk.ports.own.last(MEMORY)) is not None
    assert last.key == MEMORY
    assert [entry.key for entry in await clerk.ports.own.latest(S.lite_of("memory-clerk"))] == [MEMORY]
    await clerk.ports.own.erase(MEMORY, through_seq=first)
    assert await _read(clerk.ports.own, MEMORY) == [b"2"]
    await clerk.ports.own.erase(MEMORY)
    assert await clerk.ports.own.last(MEMORY) is None
    for place in (clerk, bridge):
        await place.aclose()
    assert not server.violations()


async def test_an_id_that_was_used_for_one_key_keeps_nothing_from_another(server: RestrictedServer) -> None:
    bridge = await server.open("bridge", "bridge")
    await bridge.ports.queue.declare(CLERK)
    clerk = await server.open("agent", "clerk", serves=("office.file",))

    for key in (MEMORY, TALK, TALK):
        await clerk.ports.own.append(key, b"1", ttl_s=600.0, msg_id="the same")

    assert [await _read(clerk.ports.own, key) for key in (MEMORY, TALK)] == [[b"1"], [b"1"]]
    for place in (clerk, bridge):
        await place.aclose()


async def test_numbers_of_a_stream_that_was_lost_come_never_again(server: RestrictedServer) -> None:
    bridge = await server.open("bridge", "bridge")
    await bridge.ports.queue.declare(CLERK)
    clerk = await server.open("agent", "clerk", serves=("office.file",))
    of_before = await clerk.ports.own.append(MEMORY, b"1", ttl_s=600.0)
    used, *_ = await storage(bridge.connection, StreamNames("test"))
    assert used[StreamNames("test").own("clerk")][1] == 1

    await bridge.connection.api(f"STREAM.DELETE.{StreamNames('test').own('clerk')}", {})
    await bridge.ports.queue.declare(CLERK)

    assert await clerk.ports.own.append(MEMORY, b"1", ttl_s=600.0) > of_before
    for place in (clerk, bridge):
        await place.aclose()


async def test_where_nobody_asked_for_it_no_agent_has_a_stream_of_its_own(settings: Any) -> None:
    place = await Wiring.open(settings, AgentIdentity(id="bridge"), create=True)
    await place.ports.queue.declare(CLERK)

    assert StreamNames(settings.env).own("clerk") not in await _names(place)
    assert place.ports.own is place.ports.lite
    await place.aclose()
