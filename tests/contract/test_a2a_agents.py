"""A2A agents of others as topics: one that is made with the SDK, and our own gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from a2a.client import Client
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import InvalidParamsError, TaskNotFoundError

from squadron import Agent, topic
from squadron.actors.agent import AgentSpec
from squadron.actors.operations import Operation
from squadron.actors.remote.a2a_agent import A2aAgent, look_at_card, skills_of
from squadron.actors.remote.a2a_errand import Errand
from squadron.actors.remote.a2a_server import A2aServer, agent_for, keys_in, name_from
from squadron.bridge.packing.code import pack, unpack
from squadron.runtime.errors import (
    ConfigError,
    InvalidInputError,
    ServerUnavailableError,
    SquadronError,
    UntrustedError,
)
from squadron.runtime.store.own_journal import memory_owner
from squadron.runtime.wire.topics import SemanticTopic
from squadron.testing import MemorySquad
from tests.contract.a2a_scribe import Scribe
from tests.contract.conftest import Peer, Serve, World, until, until_listening
from tests.contract.gateway_process import opened_gateway
from tests.contract.nats_cluster import free_port
from tests.contract.test_rubbish import RUBBISH

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@contextlib.asynccontextmanager
async def neighbour(trace: Path, *options: str, port: int = 0) -> AsyncIterator[str]:
    """A neighbour in a process of its own, killed at the end; gives its URL."""
    port = port or free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.a2a_neighbour", str(port), *options),
        cwd=ROOT,
        env={**os.environ, "NEIGHBOUR_TRACE": str(trace)},
        stderr=asyncio.subprocess.DEVNULL,
    )

    try:
        await until_listening(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def deployed(squad: MemorySquad, **server: Any) -> type[A2aAgent]:
    said, name = A2aServer.of(server), "a2a_near"
    card = await look_at_card(said)
    made = A2aAgent.serving(name, said.to_dict(), skills_of(card, name), description=card.description)
    # As a replica gets it.
    code, blob = pack(made)
    assert blob == b""
    travelled: Any = unpack(code, b"")
    await squad.deploy(travelled)
    return made


def lines_of(trace: Path, word: str) -> list[str]:
    return [each for each in trace.read_text().splitlines() if each.startswith(word)] if trace.exists() else []


async def seen(trace: Path, word: str, times: int = 1) -> bool:
    return len(lines_of(trace, word)) >= times


@pytest.mark.parametrize("options", [(), ("--plain",)], ids=["streams", "plain"])
async def test_skills_are_topics_and_tasks_come_to_what_they_come_to_there(
    trace: Path, options: tuple[str, ...]
) -> None:
    async with neighbour(trace, *options) as url, MemorySquad(turned=False) as squad:
        made = await deployed(squad, url=url)
        # A skill that takes pictures alone is left out.
        (talk,) = (each.topic for each in squad.topics())
        assert (talk.name, talk.description, talk.examples) == ("a2a_near.talk", "Does as it is told.", ("hi",))
        assert AgentSpec.of(made).description == "Lives next door."
        assert (await squad.ask("a2a_near.talk", "echo hello")).unwrap() == "hello"
        assert (await squad.ask("a2a_near.talk", {"text": "data"})).unwrap() == {"n": 3, "half": 0.5}
        failed = await squad.ask("a2a_near.talk", "fail")
        assert (failed.kind, failed.attempt) == ("failed", 1)
        assert "no ink" in failed.reason
        wrong = await squad.ask("a2a_near.talk", {"words": 1})
        assert wrong.kind == "rejected"
        assert (await squad.ask("a2a_near.talk", "count 3")).unwrap() == "0,1,2,"
        people = squad.people({"answer": "XL"})
        assert (await squad.ask("a2a_near.talk", "ask me")).unwrap() == "answered XL"
        assert people.asked[0].question.message == "a2a_near asks: Which size?"
        await people.aclose()


async def test_what_comes_by_pieces_comes_as_chunks(trace: Path) -> None:
    async with neighbour(trace) as url, MemorySquad(turned=False) as squad:
        await deployed(squad, url=url)
        assert [each async for each in squad.stream("a2a_near.talk", "count 3")] == ["0,", "1,", "2,"]


@pytest.mark.parametrize("options", [(), ("--plain",)], ids=["streams", "plain"])
async def test_a_task_that_is_cancelled_or_late_is_cancelled_there(trace: Path, options: tuple[str, ...]) -> None:
    async with neighbour(trace, *options) as url, MemorySquad(turned=False) as squad:
        await deployed(squad, url=url)
        handle = await squad.submit("a2a_near.talk", "wait long")
        await until(lambda: seen(trace, "waiting"))
        await handle.cancel()
        assert (await handle.outcome()).kind == "cancelled"
        await until(lambda: seen(trace, "cancelled"))
        late = await squad.ask("a2a_near.talk", "wait long", within_s=4)
        assert late.kind == "timed_out"
        await until(lambda: seen(trace, "cancelled", 2))


async def test_a_replica_that_dies_leaves_its_task_to_the_next_which_takes_it_up(trace: Path) -> None:
    async with neighbour(trace) as url, MemorySquad(turned=False, lease_s=1.0) as squad:
        made = await deployed(squad, url=url)
        handle = await squad.submit("a2a_near.talk", "wait short", within_s=60)
        await until(lambda: seen(trace, "waiting"))
        own, subjects = squad._own.ports.own, squad._own.ports.subjects

        async def noted() -> bool:
            return bool(await own.latest(subjects.lite_of(memory_owner("a2a_near"))))

        await until(noted)
        await squad.kill("a2a_near")
        await squad.deploy(made)
        outcome = await handle.outcome()
        assert outcome.unwrap() == "waited"
        # It was sent there once.
        assert len(lines_of(trace, "called")) == 1


@pytest.mark.slow
async def test_an_agent_that_is_killed_and_comes_back_is_asked_again(trace: Path) -> None:
    port = free_port()
    async with MemorySquad(turned=False) as squad:
        async with neighbour(trace, port=port) as url:
            await deployed(squad, url=url)
            os.kill(int(lines_of(trace, "started")[-1].split()[1]), signal.SIGKILL)
            handle = await squad.submit("a2a_near.talk", "echo back", within_s=60)
        async with neighbour(trace, port=port):
            assert (await handle.outcome()).unwrap() == "back"


async def test_rubbish_where_a_task_elsewhere_is_noted_has_it_sent(peer: Peer) -> None:
    class Forgetful:
        async def get_task(self, request: pb.GetTaskRequest) -> pb.Task:
            raise InvalidParamsError if len(request.id) > 100 else TaskNotFoundError

    ctx: Any = SimpleNamespace(
        agent="clerk",
        message=SimpleNamespace(id="t"),
        own=peer.lite,
        caller=SimpleNamespace(ports=peer.place.ports),
    )
    operation = Operation(name="talk", topic=SemanticTopic(name="a2a_near.talk"))
    for rubbish in (
        *RUBBISH,
        b'{"task": "x", "context": 1}',
        b'{"task": {"a": []}, "context": "%s"}' % (b"y" * 999),
    ):
        errand = Errand(cast("Client", Forgetful()), pb.AgentCard(), operation, ctx)
        await peer.lite.append(errand._noted._key, rubbish)
        await errand._recall()
        assert errand._task_id == "", rubbish


async def test_agents_of_a_gateway_of_ours_keep_their_schemas_numbers_chunks_and_questions(
    peer: Peer, serve: Serve, world: World
) -> None:
    scribe = Scribe()
    await serve(scribe)
    async with opened_gateway(peer.place, "a2a") as url, MemorySquad(turned=False) as squad:
        keys = (await _json(f"{url}/.well-known/jwks.json"))["keys"]
        await deployed(squad, url=f"{url}/a2a/scribe", keys={"keys": keys})
        topics = {each.topic.name: each.topic for each in squad.topics()}
        assert topics["a2a_near.add"].input_schema["required"] == ["a", "b"]
        sum = (await squad.ask("a2a_near.add", {"a": 1, "b": 2})).unwrap()
        assert (sum, type(sum["sum"])) == ({"sum": 3}, int)
        assert [each async for each in squad.stream("a2a_near.count", {"to": 3})] == ["0", "1", "2"]
        people = squad.people({"n": 2.5})
        assert (await squad.ask("a2a_near.number", {})).unwrap() == {"n": 2.5}
        assert people.asked[0].question.schema["properties"]["n"]["type"] == "number"
        await people.aclose()
        failed = await squad.ask("a2a_near.fail", {})
        assert "out of ink" in failed.reason


class Beginner(Agent):
    """Stands where an agent is to be that leads elsewhere."""

    name = "a2a_there"

    @topic("a2a_there.go")
    async def go(self, text: str) -> str:
        return text


async def test_two_squads_that_lead_to_each_other_hand_a_task_to_and_fro_for_a_while_only() -> None:
    async with MemorySquad(turned=False) as here, MemorySquad(turned=False) as there:
        await here.deploy(Beginner())
        async with opened_gateway(here._place, "a2a") as near, opened_gateway(there._place, "a2a") as far:
            for squad, name, url in (
                (there, "a2a_here", f"{near}/a2a/a2a_there"),
                (here, "a2a_there", f"{far}/a2a/a2a_here"),
            ):
                server = A2aServer.of({"url": url})
                operations = skills_of(await look_at_card(server), name)
                await squad.deploy(A2aAgent.serving(name, server.to_dict(), operations))
            outcome = await here.ask("a2a_there.go", {"text": "round we go"})
            assert outcome.kind == "failed"
            assert "too often handed on" in outcome.reason


async def test_a_card_of_another_key_is_not_believed(peer: Peer, serve: Serve) -> None:
    await serve(Scribe())
    async with opened_gateway(peer.place, "a2a") as url:
        (key,) = (await _json(f"{url}/.well-known/jwks.json"))["keys"]
        for keys in ([key | {"x": "A" * 43}], [key | {"kid": "other"}], []):
            with pytest.raises(UntrustedError, match="not signed"):
                await look_at_card(A2aServer.of({"url": f"{url}/a2a/scribe", "keys": {"keys": keys}}))


async def _json(url: str) -> Any:
    async with httpx.AsyncClient() as http:
        return (await http.get(url)).json()


async def test_addresses_on_other_hosts_are_not_gone_to(trace: Path) -> None:
    async with neighbour(trace) as url:
        card = await look_at_card(A2aServer.of({"url": url}))
        # The first of its addresses leads elsewhere.
        assert [each.url for each in card.supported_interfaces] == [f"{url}/rpc", f"{url}/rest"]
        with pytest.raises(ConfigError, match="no address"):
            await look_at_card(A2aServer.of({"url": url.replace("127.0.0.1", "localhost")}))


async def test_what_is_no_agent_says_so() -> None:
    with pytest.raises(ServerUnavailableError, match="reached"):
        await look_at_card(A2aServer.of({"url": f"http://127.0.0.1:{free_port()}"}))


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"url": "ftp://x"}, "url"),
        ({"url": "https://me:secret@x.example"}, "url"),
        ({}, "url"),
        ({"url": "https://x.example", "headers": {"Authorization": "Bearer as-it-is"}}, "headers.Authorization"),
        ({"url": "https://x.example", "keys": {"kty": "OKP"}}, "url"),
        ({"url": "https://x.example", "keys": {"keys": [{"kty": "OKP", "d": "private"}]}}, "keys"),
    ],
    ids=["scheme", "password", "nothing", "secret", "no-set", "private"],
)
def test_what_is_wrong_with_an_agent_is_told_by_its_field(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        A2aServer.of(given)
    assert caught.value.field == field
    assert "as-it-is" not in str(caught.value)


def test_an_agent_is_called_by_what_its_card_says() -> None:
    assert agent_for(name_from("The Neighbour (2)")) == "a2a_the_neighbour__2"
    assert agent_for(name_from("漢字")) == "a2a_agent"
    with pytest.raises(SquadronError):
        agent_for("not a name")
    assert keys_in('{"kty": "OKP"}') == {"keys": [{"kty": "OKP"}]}
    with pytest.raises(InvalidInputError):
        keys_in("[")
