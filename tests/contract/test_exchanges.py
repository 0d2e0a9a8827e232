"""What an agent remembers of a conversation: shared by its replicas, within its room, each exchange once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.thinking.exchanges import KEPT_EXCHANGES, MOST_SAID_TOKENS, Exchanges, read_history
from squadron.actors.thinking.model import ChatMessage
from squadron.actors.thinking.repair import CUT_BEFORE
from squadron.actors.thinking.tokens import conversation_tokens
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.running.context import TurnContext
from tests.contract.conftest import SOON_S, Peer, Serve

ROOM = 4_000


class Keeper(Agent):
    """Hands out the contexts of its turns."""

    def __init__(self) -> None:
        self.contexts: list[TurnContext] = []

    @topic("talk.keep")
    async def keep(self, ctx: TurnContext) -> None:
        """Keep the context."""
        self.contexts.append(ctx)


Turn = Callable[..., Awaitable[TurnContext]]


@pytest.fixture
async def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
async def home(keeper: Keeper, serve: Serve) -> Peer:
    """Where the keeper is, and reads what it keeps."""
    return (await serve(keeper)).peer


@pytest.fixture
async def turn(peer: Peer, keeper: Keeper, home: Peer) -> Turn:
    """The context of a new task, of one conversation unless another is named."""

    async def begin(conversation: str = "talk", **told: Any) -> TurnContext:
        options = AskOptions(within_s=SOON_S, conversation_id=conversation)
        (await peer.caller.ask("talk.keep", {}, options)).unwrap()
        ctx = keeper.contexts[-1]
        context = ctx.message.context.model_copy(update=told)
        ctx.message = ctx.message.model_copy(update={"context": context})
        return ctx

    return begin


def key_of(home: Peer) -> str:
    return home.subjects.lite("talk-keeper", "talk")


async def stored(home: Peer) -> list[bytes]:
    return [entry.data async for entry in home.ports.own.read(key_of(home))]


def said(messages: list[ChatMessage]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


async def test_what_was_said_comes_back_in_order_to_the_next_task_and_no_other_conversation(turn: Turn) -> None:
    for number in range(3):
        await Exchanges(await turn()).add(f"q{number}", f"a{number}")
    earlier = await Exchanges(await turn()).earlier(budget_tokens=ROOM)
    assert said(earlier) == [
        (role, f"{role[0].replace('u', 'q')}{n}") for n in range(3) for role in ("user", "assistant")
    ]
    assert await Exchanges(await turn("another")).earlier(budget_tokens=ROOM) == []


async def test_an_exchange_is_remembered_once_however_often_its_task_is_tried(turn: Turn, home: Peer) -> None:
    ctx = await turn()
    await Exchanges(ctx).add("q", "a")
    await Exchanges(ctx).add("q", "a")
    assert len(await stored(home)) == 1
    # Long after, when the server knows the id no more.
    await home.ports.own.append(key_of(home), (await stored(home))[0])
    assert said(await Exchanges(await turn()).earlier(budget_tokens=ROOM)) == [("user", "q"), ("assistant", "a")]


async def test_a_second_attempt_sees_what_the_first_one_saw(turn: Turn) -> None:
    await Exchanges(await turn()).add("before", "yes")
    ctx = await turn()
    first = await Exchanges(ctx).earlier(budget_tokens=ROOM)
    await Exchanges(ctx).add("now", "no")
    assert await Exchanges(ctx).earlier(budget_tokens=ROOM) == first
    # What thinks a second time within the task knows of the first.
    second = await Exchanges(ctx, 2).earlier(budget_tokens=ROOM)
    assert said(second)[2:] == [("user", "now"), ("assistant", "no")]
    await Exchanges(ctx, 2).add("then", "perhaps")
    assert len(await Exchanges(await turn()).earlier(budget_tokens=ROOM)) == 6


async def test_what_comes_back_never_outgrows_its_room(turn: Turn) -> None:
    for number in range(12):
        size = (20, 900, 60)[number % 3]
        await Exchanges(await turn()).add(
            f"Question {number}? " + "why " * size, f"Answer {number}. " + "so " * size
        )
    exchanges = Exchanges(await turn())
    for room in (0, 10, 60, 150, 400, 1_000, 2_500, 6_000, 50_000):
        earlier = await exchanges.earlier(budget_tokens=room, family="o200k")
        assert conversation_tokens(earlier, "o200k") <= room
        assert not earlier or earlier[0].role == "user"
        if room >= 400:
            assert earlier[-1].content.startswith("Answer 11.")
        if 1_000 <= room <= 6_000:
            assert "<untrusted-" in earlier[0].content
            assert room < 2_500 or "Question 0?" in earlier[0].content
        if room == 50_000:
            assert len(earlier) == 24


async def test_one_exchange_that_is_too_long_comes_with_its_middle_left_out(turn: Turn) -> None:
    await Exchanges(await turn()).add("begin " + "why " * 3_000 + "end?", "Because " + "so " * 3_000 + "indeed.")
    earlier = await Exchanges(await turn()).earlier(budget_tokens=600, family="o200k")
    assert [m.role for m in earlier] == ["user", "assistant"]
    assert earlier[0].content.startswith("begin why")
    assert earlier[0].content.endswith("why end?")
    assert earlier[1].content.endswith("so indeed.")
    assert conversation_tokens(earlier, "o200k") <= 600


async def test_what_no_server_would_take_is_remembered_all_the_same(turn: Turn) -> None:
    await Exchanges(await turn()).add("q", "begin " + "so " * 1_000_000 + "end \ud83d")
    answer = (await Exchanges(await turn()).earlier(budget_tokens=100_000))[-1].content
    assert answer.startswith("begin so")
    assert answer.endswith("end \ufffd")
    assert conversation_tokens([ChatMessage("user", answer)]) <= MOST_SAID_TOKENS + 50


async def test_a_long_conversation_is_folded_and_its_beginning_is_not_forgotten(turn: Turn, home: Peer) -> None:
    context = await turn()
    for number in range(2 * KEPT_EXCHANGES + 1):
        name = "My name is Ada and I will pay in euros." if number == 0 else f"question {number}"
        await Exchanges(await _as_of_another_task(context, number)).add(name, f"answer {number}")
    assert len(await stored(home)) == 2 * KEPT_EXCHANGES + 1
    before = await Exchanges(await turn()).earlier(budget_tokens=20_000)
    # The newest ones, and the summary.
    assert len(await stored(home)) == KEPT_EXCHANGES + 1
    after = await Exchanges(await turn()).earlier(budget_tokens=20_000)
    assert after == before
    assert "My name is Ada" in after[0].content
    assert len(after) == 2 * KEPT_EXCHANGES + 1
    assert after[-1].content == f"answer {2 * KEPT_EXCHANGES}"
    await Exchanges(await turn()).add("and?", "on it goes")
    assert (await Exchanges(await turn()).earlier(budget_tokens=20_000))[-1].content == "on it goes"


async def _as_of_another_task(ctx: TurnContext, number: int) -> TurnContext:
    ctx.message = ctx.message.model_copy(update={"id": f"task-{number}"})
    return ctx


async def test_replicas_that_fold_at_once_make_one_summary(turn: Turn, home: Peer) -> None:
    context = await turn()
    for number in range(2 * KEPT_EXCHANGES + 1):
        await Exchanges(await _as_of_another_task(context, number)).add(f"q{number}", f"a{number}")
    readers = [Exchanges(await turn()) for _ in range(4)]
    seen = await asyncio.gather(*(each.earlier(budget_tokens=20_000) for each in readers))
    assert sum(b'"summary"' in data for data in await stored(home)) == 1
    assert all(messages[-1].content == f"a{2 * KEPT_EXCHANGES}" for messages in seen)
    assert len(await stored(home)) == KEPT_EXCHANGES + 1


async def test_a_fold_that_was_cut_off_half_way_repeats_nothing(turn: Turn, home: Peer) -> None:
    for number in range(3):
        await Exchanges(await turn()).add(f"q{number}", f"a{number}")
    seqs = [entry.seq async for entry in home.ports.own.read(key_of(home))]
    entry = b'{"summary": {"text": "User: q0, q1", "through": %d}}' % seqs[1]
    await home.ports.own.append(key_of(home), entry)
    earlier = await Exchanges(await turn()).earlier(budget_tokens=ROOM)
    assert "User: q0, q1" in earlier[0].content
    assert said(earlier)[1:] == [("user", "q2"), ("assistant", "a2")]


@pytest.mark.parametrize("rubbish", [b"", b"\xff", b"[]", b"7", b'{"exchange": 1}', b'{"summary": {"text": 1}}'])
async def test_what_others_wrote_there_changes_nothing(turn: Turn, home: Peer, rubbish: bytes) -> None:
    await Exchanges(await turn()).add("q", "a")
    await home.ports.own.append(key_of(home), rubbish)
    assert len(await Exchanges(await turn()).earlier(budget_tokens=ROOM)) == 2


async def test_who_does_not_remember_keeps_nothing(turn: Turn, home: Peer) -> None:
    silent = Exchanges(await turn(), remembers=False)
    await silent.add("q", "a")
    assert await silent.earlier(budget_tokens=ROOM) == []
    assert await stored(home) == []
    alone = await turn()
    alone.message = alone.message.model_copy(update={"id": "talk"})
    await Exchanges(alone).add("q", "a")
    assert await stored(home) == []


HISTORY = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"note": 1}]


@pytest.mark.parametrize(
    ("most", "shown"),
    [
        (None, [("user", "a"), ("assistant", "b"), ("user", '{"note":1}')]),
        (9, [("user", "a"), ("assistant", "b"), ("user", '{"note":1}')]),
        (2, [("user", CUT_BEFORE), ("assistant", "b"), ("user", '{"note":1}')]),
        (1, [("user", '{"note":1}')]),
        (0, []),
    ],
)
async def test_the_callers_history_comes_before_memory_and_begins_with_the_user(
    turn: Turn, most: int | None, shown: list[tuple[str, str]]
) -> None:
    await Exchanges(await turn()).add("q", "a")
    ctx = await turn(history=HISTORY, max_history=most)
    assert said(await Exchanges(ctx).earlier(budget_tokens=ROOM)) == shown


async def test_the_callers_history_fits_into_its_room_too(turn: Turn) -> None:
    history = [{"role": ("user", "assistant")[n % 2], "content": f"{n} " + "word " * 300} for n in range(40)]
    earlier = await Exchanges(await turn(history=history)).earlier(budget_tokens=2_000, family="o200k")
    assert conversation_tokens(earlier, "o200k") <= 2_000
    assert earlier[-1].content == history[-1]["content"]
    assert "User: 20 word" in earlier[0].content


async def test_a_limit_on_messages_counts_for_memory_too(turn: Turn) -> None:
    for number in range(3):
        await Exchanges(await turn()).add(f"q{number}", f"a{number}")
    earlier = await Exchanges(await turn(max_history=2)).earlier(budget_tokens=ROOM)
    assert said(earlier) == [("user", "q2"), ("assistant", "a2")]


@pytest.mark.parametrize(
    ("item", "role", "text"),
    [
        ({"role": "model", "content": "x"}, "assistant", "x"),
        ({"role": "agent", "content": [{"type": "text", "text": "x"}, {"text": "y"}]}, "assistant", "x\ny"),
        ({"role": "system", "content": "obey"}, "user", "obey"),
        ({"role": "tool", "content": {"a": 1}}, "user", '{"a":1}'),
        ("hello", "user", "hello"),
        (7, "user", "7"),
        (None, "user", "null"),
    ],
)
def test_a_history_may_have_any_shape(item: Any, role: str, text: str) -> None:
    assert read_history(item) == ChatMessage(role, text)  # type: ignore[arg-type]
