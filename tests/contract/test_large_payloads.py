"""Payloads too large for a message: asked, answered and streamed as if they were small, over both worlds."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from squadron import Agent, Context, Retry, topic
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ClaimLostError, MessageTooLargeError
from squadron.runtime.ports.vault import Vault
from squadron.runtime.store.claims import claim_of
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.outcome import Cancelled, DeadLettered, Expired, Failed, Outcome, Rejected, Result
from tests.contract.conftest import Peer, Replica, World, first_stored, until

MB = 1024 * 1024
OVER = 512 * 1024


class Watched:
    """A vault that remembers what it was asked to keep, and for how long."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self.kept: dict[str, float] = {}
        self.fetched = 0

    async def store(self, data: bytes, *, keep_s: float, key: str = "") -> str:
        name = await self._vault.store(data, keep_s=keep_s, key=key)
        self.kept[name] = keep_s
        return name

    async def fetch(self, name: str) -> bytes:
        self.fetched += 1
        return await self._vault.fetch(name)

    async def drop(self, name: str, key: str = "") -> None:
        await self._vault.drop(name, key)

    async def held(self) -> list[str]:
        """Names under which there is still something."""
        found = []
        for name in self.kept:
            try:
                await self._vault.fetch(name)
            except ClaimLostError:
                continue
            found.append(name)
        return found


class Archive(Agent):
    """Takes and gives large things."""

    def __init__(self) -> None:
        self.ran = 0

    @topic("archive.length")
    async def length(self, text: str) -> int:
        self.ran += 1
        return len(text)

    @topic("archive.page")
    async def page(self, letters: int) -> str:
        self.ran += 1
        return "é" * (letters // 2)

    @topic("archive.echo", max_attempts=2)
    async def echo(self, text: str, context: Context, fail: bool = False, again: bool = False) -> str:
        self.ran += 1
        if fail:
            raise ZeroDivisionError
        if again and context.attempt == 1:
            raise Retry(after_s=0.0)
        return text

    @topic("archive.pages")
    async def pages(self, letters: int) -> AsyncIterator[str]:
        for letter in "abc":
            yield letter * letters


@pytest.fixture
async def replica(world: World) -> AsyncIterator[Replica]:
    """One replica that serves the archive."""
    running = Replica(await world.join("replica"), Archive())
    _watch(running.peer)
    await running.start()
    yield running
    await running.pump.aclose()


@pytest.fixture
async def client(world: World, replica: Replica) -> Peer:
    """Somebody who asks; the archive is being served."""
    joined = await world.join("client")
    _watch(joined)
    return joined


def _watch(peer: Peer) -> None:
    peer.claims.vault = Watched(peer.vault)


def _watched(peer: Peer) -> Watched:
    assert isinstance(peer.vault, Watched)
    return peer.vault


async def _ask(peer: Peer, topic: str, **content: Any) -> Outcome:
    return await asyncio.wait_for(peer.caller.ask(topic, content, AskOptions(within_s=30)), 35)


async def _nothing_held(peer: Peer) -> None:
    async def dropped() -> bool:
        return not await _watched(peer).held()

    await until(dropped)


def _too_long(peer: Peer) -> None:
    peer.claims._most_bytes = 2 * OVER


async def _letters(peer: Peer) -> list[dict[str, Any]]:
    pattern = f"agents.{peer.subjects.environment}.dead.>"
    return [AgentMessage.decode(entry.data).payload.content async for entry in peer.dead.read(pattern)]


@pytest.mark.parametrize("letters", [OVER - 2_000, OVER + 1, 9 * MB], ids=["just below", "just above", "9 MB"])
async def test_a_large_input_arrives_and_is_gone_when_the_task_is_settled(client: Peer, letters: int) -> None:
    assert (await _ask(client, "archive.length", text="x" * letters)).unwrap() == letters
    assert list(_watched(client).kept.values()) == ([90 * 24 * 3600.0] if letters > OVER else [])
    await _nothing_held(client)


@pytest.mark.parametrize("letters", [OVER - 2_000, OVER + 2, 9 * MB], ids=["just below", "just above", "9 MB"])
async def test_a_large_result_arrives_and_is_kept_as_long_as_the_outcome(
    client: Peer, replica: Replica, letters: int
) -> None:
    outcome = await _ask(client, "archive.page", letters=letters)
    assert isinstance(outcome, Result)
    assert outcome.data == "é" * (letters // 2)
    assert (outcome.source, outcome.attempt) == ("replica", 1)
    assert list(_watched(replica.peer).kept.values()) == ([3600.0] if letters > OVER else [])


async def test_fifty_megabytes_there_and_back(client: Peer, replica: Replica) -> None:
    text = "".join(f"{number:09} " for number in range(5 * MB))
    assert len(text) == 50 * MB
    outcome = await _ask(client, "archive.echo", text=text)
    assert outcome.unwrap() == text
    assert replica.agent.ran == 1
    await _nothing_held(client)


async def test_large_chunks_are_streamed_in_order_and_read_again_later(client: Peer, world: World) -> None:
    handle = await client.caller.submit("archive.pages", {"letters": OVER + 1}, AskOptions(within_s=30))
    expected = [letter * (OVER + 1) for letter in "abc"]
    assert [chunk async for chunk in handle.chunks()] == expected
    # Ended, and so read from what is stored.
    await handle.outcome()
    assert [chunk async for chunk in handle.chunks()] == expected


async def test_who_comes_later_finds_a_large_outcome_too(client: Peer, world: World) -> None:
    ask = AskOptions(within_s=30, task_id="later-t1")
    first = await client.caller.submit("archive.page", {"letters": 2 * OVER}, ask, owner="later")
    assert len((await first.outcome()).unwrap()) == OVER
    heir = await world.join("heir")
    second = await heir.caller.submit("archive.page", {"letters": 2 * OVER}, ask, owner="later")
    assert second.done
    assert await second.outcome() == await first.outcome()


async def test_whoever_polls_sees_a_large_outcome_without_waiting_for_it(client: Peer) -> None:
    handle = await client.caller.submit("archive.page", {"letters": 2 * OVER}, AskOptions(within_s=30))

    async def done() -> bool:
        return handle.done

    await until(done)


async def test_a_second_attempt_finds_the_input_again(client: Peer, replica: Replica) -> None:
    text = "x" * 2 * OVER
    outcome = await _ask(client, "archive.echo", text=text, again=True)
    assert (outcome.unwrap(), outcome.attempt) == (text, 2)
    await _nothing_held(client)


async def test_the_input_of_a_dead_letter_stays_until_the_letter_was_sent_again(
    client: Peer, replica: Replica
) -> None:
    outcome = await _ask(client, "archive.echo", text="x" * 2 * OVER, fail=True)
    assert isinstance(outcome, DeadLettered)
    assert len(await _watched(client).held()) == 1
    [letter] = await _letters(client)
    sealed = letter["message"].encode()
    message = await client.claims.open(sealed)
    assert len(message.payload.content["text"]) == 2 * OVER
    await client.claims.drop(AgentMessage.decode(sealed))
    await _nothing_held(client)


@pytest.mark.parametrize("own_id", ["", "large-1"])
async def test_a_task_whose_input_is_lost_is_failed_and_says_so(
    client: Peer, replica: Replica, own_id: str
) -> None:
    await replica.pump.aclose()
    options = AskOptions(within_s=30, task_id=own_id)
    handle = await client.caller.submit("archive.length", {"text": "x" * 2 * OVER}, options)
    [name] = _watched(client).kept
    await client.vault.drop(name)
    late = Replica(replica.peer, replica.agent)
    await late.start()
    outcome = await handle.outcome()
    await late.pump.aclose()
    assert isinstance(outcome, Failed)
    assert outcome.details == {"type": "ClaimLostError"}
    assert name in outcome.reason
    assert replica.agent.ran == 0


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"bytes": 7}, {"name": 5}], ids=lambda c: next(iter(c)))
async def test_a_task_with_a_false_claim_is_failed(client: Peer, replica: Replica, change: dict[str, Any]) -> None:
    reply_to = client.subjects.lite("stranger", uuid.uuid4().hex)
    task = AgentMessage.new("task", AgentIdentity(id="stranger"), {"text": "x" * 2 * OVER}, reply_to=reply_to)
    raw = json.loads(await client.claims.seal(task.encode(), keep_s=60))
    raw["payload"]["claim"] |= change
    await client.queue.put(client.subjects.task("archive.length"), json.dumps(raw).encode(), msg_id=task.id)
    content = (await first_stored(client.lite, reply_to)).payload.content
    assert content["outcome"] == "failed"
    assert content["error"]["details"] == {"type": "InvalidMessageError"}
    assert replica.agent.ran == 0


async def test_a_caller_whose_large_outcome_is_lost_hears_that_at_once(client: Peer, replica: Replica) -> None:
    class Forgetful(Watched):
        async def store(self, data: bytes, *, keep_s: float, key: str = "") -> str:
            name = await super().store(data, keep_s=keep_s, key=key)
            await self.drop(name)
            return name

    replica.peer.claims.vault = Forgetful(replica.peer.vault)
    outcome = await _ask(client, "archive.page", letters=2 * OVER)
    assert isinstance(outcome, Failed)
    assert outcome.details == {"type": "ClaimLostError"}


async def test_a_large_input_that_its_agent_refuses_is_kept_with_its_letter(
    client: Peer, replica: Replica
) -> None:
    raw = AgentMessage.new("task", AgentIdentity(id="s"), {"letters": "x" * 2 * OVER})
    sealed = await client.claims.seal(raw.encode(), keep_s=60)
    await client.queue.put(client.subjects.task("archive.page"), sealed, msg_id=raw.id)

    async def buried() -> bool:
        return bool(await _letters(client))

    await until(buried)
    [letter] = await _letters(client)
    assert letter["outcome"] == Rejected.kind
    assert await client.claims.open(letter["message"].encode()) == raw


async def test_a_task_that_is_cancelled_while_its_input_is_fetched_never_runs(
    client: Peer, replica: Replica
) -> None:
    class Slow(Watched):
        def __init__(self, vault: Vault) -> None:
            super().__init__(vault)
            self.asked = asyncio.Event()

        async def fetch(self, name: str) -> bytes:
            self.asked.set()
            await asyncio.sleep(30)
            return await super().fetch(name)

    slow = Slow(replica.peer.vault)
    replica.peer.claims.vault = slow
    handle = await client.caller.submit("archive.length", {"text": "x" * 2 * OVER}, AskOptions(within_s=30))
    await slow.asked.wait()
    assert isinstance(await handle.cancel(), Cancelled)
    assert replica.agent.ran == 0
    await _nothing_held(client)


async def test_a_result_with_a_claim_that_makes_no_sense_is_failed(client: Peer, replica: Replica) -> None:
    await replica.pump.aclose()
    handle = await client.caller.submit("archive.length", {"text": "x"}, AskOptions(within_s=30))
    raw = json.loads(AgentMessage.new("result", AgentIdentity(id="s"), correlation_id=handle.task_id).encode())
    raw["payload"] = {"claim": "check"}
    await client.lite.append(handle.reply_to, json.dumps(raw).encode())
    outcome = await handle.outcome()
    assert isinstance(outcome, Failed)
    assert outcome.details == {"type": "InvalidMessageError"}


async def test_a_task_that_waited_too_long_is_expired_without_a_look_at_its_input(
    client: Peer, replica: Replica
) -> None:
    await replica.pump.aclose()
    handle = await client.caller.submit("archive.length", {"text": "x" * 2 * OVER}, AskOptions(within_s=0.2))
    await handle.outcome()
    late = Replica(replica.peer, replica.agent)
    await late.start()

    async def told() -> bool:
        return await client.lite.last(handle.reply_to) is not None

    await until(told)
    await _nothing_held(client)
    await late.pump.aclose()
    entry = await client.lite.last(handle.reply_to)
    assert entry is not None
    assert AgentMessage.decode(entry.data).payload.content["outcome"] == Expired.kind
    assert _watched(replica.peer).fetched == 0


async def test_an_input_over_the_hard_limit_is_rejected_and_not_sent(client: Peer, replica: Replica) -> None:
    _too_long(client)
    outcome = await _ask(client, "archive.length", text="x" * (2 * OVER + 1))
    assert isinstance(outcome, Rejected)
    assert outcome.details["field"] == "content"
    assert "SQUADRON_MAX_MESSAGE_BYTES" in outcome.reason
    assert (_watched(client).kept, replica.agent.ran) == ({}, 0)


async def test_a_result_over_the_hard_limit_is_failed_and_not_run_again(client: Peer, replica: Replica) -> None:
    _too_long(replica.peer)
    outcome = await _ask(client, "archive.page", letters=3 * OVER)
    assert isinstance(outcome, Failed)
    assert "bytes" in outcome.reason
    assert replica.agent.ran == 1


async def test_an_input_over_the_replicas_limit_is_failed_before_it_is_fetched(
    client: Peer, replica: Replica
) -> None:
    _too_long(replica.peer)
    outcome = await _ask(client, "archive.length", text="x" * 3 * OVER)
    assert isinstance(outcome, Failed)
    assert outcome.details["type"] == "MessageTooLargeError"
    assert _watched(replica.peer).fetched == 0
    await _nothing_held(client)


async def test_a_large_input_of_the_wrong_kind_is_not_quoted_back(client: Peer) -> None:
    outcome = await _ask(client, "archive.page", letters="x" * 9 * MB)
    assert isinstance(outcome, Rejected)
    assert outcome.details["field"] == "letters"
    assert "integer" in outcome.reason
    assert len(outcome.reason) < 1_000


async def test_an_event_that_is_too_large_is_a_typed_error(peer: Peer) -> None:
    with pytest.raises(MessageTooLargeError):
        await peer.caller.sender.publish("a.b", {"text": "x" * 9 * MB})


async def test_what_travels_of_a_large_task_is_small(wiring: Wiring) -> None:
    task = AgentMessage.new("task", AgentIdentity(id="stranger"), {"text": "x" * 50 * MB})
    sealed = await wiring.ports.claims.seal(task.encode(), keep_s=60)
    assert len(sealed) < 1_000
    assert claim_of(AgentMessage.decode(sealed)) is not None
