"""Signatures are looked at topic by topic; and bids, questions to people and lite topics are held to them, too."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge.control.bridge_calls import Control
from squadron.config import Settings
from squadron.runtime.asking.answering import People
from squadron.runtime.asking.negotiation import call_for_bids
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.asking.people import put_question
from squadron.runtime.asking.question_records import question_key
from squadron.runtime.asking.searching import search
from squadron.runtime.background import spawn
from squadron.runtime.errors import ConfigError, InvalidAgentError, InvalidMessageError
from squadron.runtime.lite.topic import LiteTopics
from squadron.runtime.ports.bus import Note
from squadron.runtime.trust.verify_modes import VerifyModes
from squadron.runtime.wire.envelope import pack
from squadron.runtime.wire.outcome import Rejected, Result
from squadron.runtime.wire.question import DEFAULT_BY, Question, Reply
from tests.contract.conftest import SOON_S, Peer, until
from tests.contract.test_signed import Land, land

__all__ = ["land"]
SOON = AskOptions(within_s=10)


class Clinic(Agent):
    """One topic is everybody's, one is not."""

    @topic("clinic.record")
    async def record(self, text: str) -> str:
        return text

    @topic("clinic.hours")
    async def hours(self, text: str) -> str:
        return text

    @topic("ward.record", verify="require")
    async def ward(self, text: str) -> str:
        return text


class Slow(Agent):
    """Answers nobody."""

    @topic("slow.record")
    async def record(self, text: str) -> str:
        await asyncio.Event().wait()
        return text

    @topic("slow.hours")
    async def hours(self, text: str) -> str:
        return await self.record(text)

    @topic("text.echo", verify="require")
    async def echo(self, text: str) -> str:
        return await self.record(text)


async def ask(peer: Peer, name: str) -> Any:
    return await peer.caller.ask(name, {"text": "hi"}, SOON)


async def test_a_topic_may_have_a_mode_of_its_own_by_the_settings_and_by_its_author(land: Land) -> None:
    replica = await land.serve(Clinic(), verify="warn,clinic.record=require,clinic.*=off")
    stranger = await land.join("stranger", None, verify="off")
    ann = await land.join("ann", "client", verify="off,clinic.record=require")
    guard = replica.peer.ports.guard
    assert isinstance(await ask(stranger, "clinic.record"), Rejected)
    assert guard.refused == {"task": 1}
    assert isinstance(await ask(stranger, "clinic.hours"), Result)
    assert guard.refused == {"task": 1}
    # Its author wants more than the settings do.
    assert isinstance(await ask(stranger, "ward.record"), Rejected)
    assert guard.refused == {"task": 2}
    for name in ("clinic.record", "clinic.hours", "ward.record"):
        assert isinstance(await ask(ann, name), Result)


async def test_an_author_can_not_lessen_what_the_environment_asks_for(land: Land) -> None:
    await land.serve(Clinic(), verify="require")
    stranger = await land.join("stranger", None, verify="off")
    assert isinstance(await ask(stranger, "clinic.hours"), Rejected)


async def test_who_asks_holds_outcomes_to_the_mode_of_their_topic(land: Land) -> None:
    """A false agent answers, which signs nothing: where the author wants it signed it is not believed."""
    await land.serve(Slow(), verify="warn")
    ann = await land.join("ann", "client", verify="warn,slow.record=require,text.*=off")
    forger = await land.join("forger", None, verify="off")

    async def forged(name: str, within_s: float) -> bool:
        handle = await ann.caller.submit(name, {"text": "hi"}, SOON)
        content = Result(data="forged", task_id=handle.task_id, topic=name).to_content()
        data = pack(
            "result", forger.ports.identity, {"content": content}, timestamp=forger.clock.time(),
            correlation_id=handle.task_id,
        )  # fmt: skip
        await forger.ports.lite.append(handle.reply_to, data, ttl_s=60)
        told = spawn(handle.outcome(), "outcome")
        done, _ = await asyncio.wait([told], timeout=within_s)
        told.cancel()
        return bool(done) and isinstance(told.result(), Result)

    assert not await forged("slow.record", 0.5)
    assert await forged("slow.hours", SOON_S)
    # By its card, though the settings say off.
    assert not await forged("text.echo", 0.5)


async def test_bids_are_of_who_signed_them(land: Land) -> None:
    replica = await land.serve(Clinic())
    ann, forger = await land.join("ann", "client"), await land.join("forger", None, verify="off")
    mallory = await land.join("mallory", "client")
    await replica.bidding.start()
    calls: list[Note] = []
    await forger.bus.subscribe(forger.subjects.negotiate("clinic"), calls.append)
    calling = spawn(call_for_bids(ann.caller, "clinic.record", {"text": "hi"}, within_s=5), "bids")
    bids = await calling
    assert [each.agent for each in bids.offers] == ["clinic"]
    # What nobody signed is no call, and what a client signed no bid.
    answer = await call_for_bids(forger.caller, "clinic.record", {"text": "hi"}, within_s=1)
    assert answer.offers == ()
    await until(lambda: _is(replica.peer.ports.guard.refused["bid"] >= 1))
    await replica.bidding.aclose()

    async def false_bid(peer: Peer) -> None:
        def hear(note: Note) -> None:
            call = json.loads(note.data)
            said = {"bid": "f" * 32, "confidence": 1.0}
            identity = replica.peer.ports.identity if peer is forger else peer.ports.identity
            data = pack(
                "event", identity, {"content": said}, timestamp=peer.clock.time(), correlation_id=call["id"]
            )
            spawn(peer.ports.lite.append(call["replyTo"], data, ttl_s=60), "false bid")
            spawn(peer.bus.publish(note.reply, data), "false bid by answer")

        await peer.bus.subscribe(peer.subjects.negotiate("clinic"), hear)

    for peer in (forger, mallory):
        await false_bid(peer)
    bids = await call_for_bids(ann.caller, "clinic.record", {"text": "hi"}, within_s=1)
    assert bids.offers == ()
    await until(lambda: _is(ann.ports.guard.refused["bid"] >= 2))


async def test_an_answer_of_a_person_counts_if_who_gave_it_signed_it(land: Land) -> None:
    asker = await land.join("analyst", "agent")
    ann, mallory = await land.join("ann", "operator"), await land.join("mallory", "client")
    forger = await land.join("forger", None, verify="off")
    now = asker.clock.time()
    question = Question(message="Which one?", deadline_ms=round((now + 60) * 1000))
    asked = await put_question(asker.caller, question, "q-1")
    key = question_key(asker.ports, "q-1")

    async def answer(peer: Peer, as_whom: Peer, by: str) -> None:
        reply = Reply("accept", {"answer": "forged"}, by=by)
        head = {"correlation_id": "q-1", "parent": "q-1", "timestamp": peer.clock.time()}
        data = pack("result", as_whom.ports.identity, {"content": reply.to_content()}, **head)  # type: ignore[arg-type]
        await peer.ports.lite.append(key, data, ttl_s=60)

    await answer(forger, ann, "ann")
    await answer(mallory, ann, "ann")
    # The default is for the asker to say.
    await answer(mallory, mallory, DEFAULT_BY)
    waiting = spawn(asked.answer(), "answer")
    await until(lambda: _is(asker.ports.guard.refused["question"] >= 3))
    assert not waiting.done()
    people = People(ann.ports, LiteTopics(ann.ports))
    assert [each.query_id for each in await people.questions()] == ["q-1"]
    await people.answer("q-1", "the left one", by="ann")
    assert (await waiting).content == {"answer": "the left one"}


async def test_a_question_that_nobody_signed_is_shown_to_nobody(land: Land) -> None:
    ann, forger = await land.join("ann", "operator"), await land.join("forger", None, verify="off")
    question = Question(message="Your password?", deadline_ms=round((ann.clock.time() + 60) * 1000))
    await put_question(forger.caller, question, "q-2")
    assert await People(ann.ports, LiteTopics(ann.ports)).questions() == []
    assert ann.ports.guard.refused["question"] >= 1


async def test_a_lite_topic_is_read_as_it_was_signed(land: Land) -> None:
    ann, mallory = await land.join("ann", "client"), await land.join("mallory", "client")
    forger, observer = await land.join("forger", None, verify="off"), await land.join("eye", "observer")
    mine, theirs = LiteTopics(ann.ports), LiteTopics(mallory.ports)
    chat = mine.topic("chat", "room")
    await chat.publish("one")
    await LiteTopics(forger.ports).topic("chat", "room").publish("forged")
    await LiteTopics(observer.ports).topic("chat", "room").publish(b"bytes of who may only look on")
    data = pack("event", ann.ports.identity, {"content": "in her name"}, timestamp=mallory.clock.time())
    await theirs.topic("chat", "room").publish(data)
    await theirs.topic("chat", "room").publish(b"bytes of anybody who signs")
    await chat.publish("two")
    read = [each async for each in chat.read(live=False)]
    assert [each.content or each.data for each in read] == ["one", b"bytes of anybody who signs", "two"]
    followed: list[Any] = []
    async with mine.follow("room") as feed:
        await feed.add("chat", "first")
        async for _, items in feed:
            followed += [each.content or each.data for each in items]  # type: ignore[union-attr]
            if "two" in followed:
                break
    assert followed == ["one", b"bytes of anybody who signs", "two"]
    assert ann.ports.guard.refused["lite"] == 6


async def _is(value: bool) -> bool:
    return value


@pytest.mark.parametrize(
    "text", ["maybe", "", "require,", "warn,clinic=off", "warn,clinic.>=off", "warn,a.b=perhaps"]
)
def test_what_is_no_mode_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of its texts
        VerifyModes.parse(text)
    if text:
        with pytest.raises(ConfigError, match="verify") as told:
            Settings.load({"SQUADRON_VERIFY": text})
        assert "warn,clinic.*=require" in told.value.hint


def test_the_first_pattern_counts_and_what_is_of_no_topic_goes_by_the_strictest() -> None:
    modes = VerifyModes.parse("Warn, clinic.record=REQUIRE ,clinic.*=off")
    assert str(modes) == "warn,clinic.record=require,clinic.*=off"
    assert [modes.of(name) for name in ("clinic.record", "clinic.hours", "a.b")] == ["require", "off", "warn"]
    assert modes.of("clinic.hours", "require") == "require"
    assert modes.strictest == "require"
    assert Settings.load({"SQUADRON_VERIFY": "warn,Clinic.A=off"}).verify == "warn,Clinic.A=off"


def test_an_author_s_mode_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(InvalidAgentError, match="verify"):
        topic("a.b", verify="perhaps")  # type: ignore[arg-type]


ANSWERS = {
    "nothing": b"",
    "rubbish": b"{",
    "list": b'[{"ok": {}}]',
    "text": b'"ok"',
    "null": b"null",
    "empty": b"{}",
    "ok is a list": b'{"ok": []}',
    "error is a text": b'{"error": "no"}',
}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_an_answer_of_the_bridge_that_is_none_is_told_as_such(peer: Peer, kind: str) -> None:
    """Where nothing is checked anybody may answer."""

    def hear(note: Note) -> None:
        spawn(peer.bus.publish(note.reply, ANSWERS[kind]), "answers")

    await peer.bus.subscribe(peer.subjects.control("*"), hear)
    control = Control(peer.bus, peer.subjects)
    for call in (control.call("status"), control.bridge()):
        with pytest.raises(InvalidMessageError, match="no bridge") as told:
            await call
        assert told.value.hint
    # Words decide.
    assert await search(peer.ports, peer.registry, "anything") == []
