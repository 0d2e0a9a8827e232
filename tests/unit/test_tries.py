"""The one retry loop: what is tried again, when, with which model, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn, Usage
from squadron.actors.thinking.tries import LIMIT_TRIES, TRIES, chain_from, think_patiently
from squadron.runtime.errors import ModelError
from squadron.testing import now_s, turned_time

REQUEST = ModelRequest((ChatMessage("user", "How many moons has Mars?"),))
#: More than any of the loop's own pauses together.
PLENTY_S = 600.0

OVERLOADED = ModelError("it answered HTTP 503", kind="passing")
LIMITED = ModelError("it answered HTTP 429", kind="limit")


@pytest.fixture(autouse=True)
async def turned() -> AsyncIterator[None]:
    with turned_time():
        yield


class Flaky:
    """A model that does as it is told: says a text and breaks, hangs, or answers."""

    def __init__(self, name: str, *steps: ModelError | ModelTurn | float, says: str = "") -> None:
        self.name, self.steps, self.says = name, list(steps), says
        self.asked: list[tuple[float, ModelRequest]] = []

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        self.asked.append((now_s(), request))
        step = self.steps.pop(0) if self.steps else ModelTurn("two", usage=Usage(9, 1))
        if isinstance(step, float):
            await asyncio.sleep(step)
            return ModelTurn("late")
        if isinstance(step, ModelError):
            if self.says and on_text is not None:
                on_text(self.says)
            raise step
        for letter in step.text:
            if on_text is not None:
                on_text(letter)
        return step

    async def aclose(self) -> None: ...


@dataclass
class Ledger:
    """Books that write down what they are told."""

    lines: list[tuple[str, str, int]] = field(default_factory=list)
    max_tokens: int | None = None
    stop_at: int = 0

    async def asking(self, model: Model, request: ModelRequest, number: int) -> ModelRequest:
        if number == self.stop_at:
            raise RuntimeError("no more")
        self.lines.append(("asking", model.name, number))
        return replace(request, max_tokens=self.max_tokens)

    async def refused(self, model: Model, error: ModelError) -> None:
        pass

    async def failed(self, model: Model, error: ModelError, number: int) -> None:
        self.lines.append(("failed", model.name, number))


@dataclass
class Heard:
    """What a reader of the stream holds in the end."""

    text: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)

    def on_text(self, piece: str) -> None:
        self.text += piece

    def on_event(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "retry":
            self.text = ""


async def think(*chain: Flaky, within_s: float = PLENTY_S, **more: Any) -> tuple[ModelTurn, Heard, Ledger]:
    heard, books = Heard(), more.pop("books", None) or Ledger()
    turn = await think_patiently(
        chain, REQUEST, books=books, within_s=within_s, on_text=heard.on_text, on_event=heard.on_event, **more
    )
    return turn, heard, books


async def test_a_passing_problem_is_tried_again_after_growing_pauses_and_each_try_is_in_the_books() -> None:
    model = Flaky("a:x", OVERLOADED, OVERLOADED)

    turn, _, books = await think(model)

    assert (turn.text, turn.model) == ("two", "a:x")
    moments = [at for at, _ in model.asked]
    assert 0.25 <= moments[1] - moments[0] <= 0.51 <= moments[2] - moments[1] + 0.02 <= 1.1
    assert books.lines == [
        ("asking", "a:x", 1),
        ("failed", "a:x", 1),
        ("asking", "a:x", 2),
        ("failed", "a:x", 2),
        ("asking", "a:x", 3),
    ]


async def test_a_lasting_outage_costs_as_many_requests_as_it_says_and_no_more() -> None:
    down, limited = Flaky("a:x", *[OVERLOADED] * 20), Flaky("a:y", *[LIMITED] * 20)

    for model in (down, limited):
        with pytest.raises(ModelError, match="HTTP"):
            await think(model)

    assert (len(down.asked), len(limited.asked)) == (TRIES, LIMIT_TRIES)
    # A limit is counted by the minute, so it is waited for about as long.
    assert 29 <= limited.asked[-1][0] - limited.asked[0][0] <= 61


@pytest.mark.parametrize("retry_after_s", [0.0, 7.0, 45.0])
async def test_what_the_provider_asks_to_wait_is_waited_and_little_more(retry_after_s: float) -> None:
    model = Flaky("a:x", ModelError("429", kind="limit", retry_after_s=retry_after_s))

    await think(model)

    waited = model.asked[1][0] - model.asked[0][0]
    assert retry_after_s <= waited <= retry_after_s + 1.01


@pytest.mark.parametrize(("kind", "least_s"), [("limit", 29), ("passing", 0.5)])
async def test_who_always_says_at_once_is_asked_after_growing_pauses(kind: str, least_s: float) -> None:
    model = Flaky("a:x", *[ModelError("HTTP", kind=kind, retry_after_s=0.0)] * 20)

    with pytest.raises(ModelError, match="HTTP"):
        await think(model)

    first, second, *_, last = [at for at, _ in model.asked]
    assert (len(model.asked), second - first < 0.1) == (LIMIT_TRIES if kind == "limit" else TRIES, True)
    assert least_s <= last - first <= 61


async def test_who_is_to_wait_longer_than_there_is_time_gives_up_at_once() -> None:
    model = Flaky("a:x", ModelError("429", kind="limit", retry_after_s=3600.0))
    began = now_s()

    with pytest.raises(ModelError, match="429"):
        await think(model, within_s=60.0)

    assert now_s() - began < 1
    assert len(model.asked) == 1


async def test_who_is_to_wait_longer_than_there_is_time_falls_back_at_once() -> None:
    model, other = Flaky("a:x", ModelError("429", kind="limit", retry_after_s=3600.0)), Flaky("b:y")
    began = now_s()

    turn, heard, books = await think(model, other, within_s=60.0)

    assert turn.model == "b:y"
    assert now_s() - began < 1
    assert heard.events == [{"event": "fallback", "from": "a:x", "to": "b:y", "why": "429"}]
    assert books.lines[-1] == ("asking", "b:y", 2)


async def test_text_of_a_try_that_broke_is_void_and_the_reader_holds_what_the_turn_holds() -> None:
    model = Flaky("a:x", OVERLOADED, ModelTurn("two moons"), says="two mo")

    turn, heard, _ = await think(model)

    assert heard.text == turn.text == "two moons"
    assert heard.events == [{"event": "retry", "try": 1}]


async def test_text_of_a_model_that_is_given_up_is_void_before_the_next_one_speaks() -> None:
    model, other = Flaky("a:x", *[OVERLOADED] * TRIES, says="two mo"), Flaky("b:y", ModelTurn("Phobos, Deimos"))

    turn, heard, _ = await think(model, other)

    assert heard.text == turn.text == "Phobos, Deimos"
    kinds = [(event["event"], event.get("try")) for event in heard.events]
    assert kinds == [("retry", 1), ("retry", 2), ("retry", 3), ("fallback", None)]


async def test_half_a_character_of_a_try_that_broke_is_not_joined_to_the_next_one() -> None:
    model = Flaky("a:x", OVERLOADED, ModelTurn("\ud83d\ude00!"), says="\ud83d")

    turn, heard, _ = await think(model)

    assert heard.text == turn.text == "😀!"
    # Nothing of the first try had been told, so nothing is taken back.
    assert heard.events == []


@pytest.mark.parametrize("kind", ["request", "key", "overflow"])
async def test_what_no_other_try_can_mend_is_raised_at_once_and_no_other_model_is_asked(kind: str) -> None:
    model, other = Flaky("a:x", ModelError("no", kind=kind)), Flaky("b:y")

    with pytest.raises(ModelError, match="no"):
        await think(model, other)

    assert (len(model.asked), len(other.asked)) == (1, 0)


async def test_a_refusal_is_an_answer_and_no_other_model_is_asked() -> None:
    with pytest.raises(ModelError, match="rather not"):
        await think(Flaky("a:x", ModelError("I'd rather not", kind="refusal")), Flaky("b:y"))


async def test_of_a_chain_that_fails_the_last_error_is_raised() -> None:
    chain = (Flaky("a:x", *[OVERLOADED] * TRIES), Flaky("b:y", ModelError("wrong key", kind="key")))

    with pytest.raises(ModelError, match="wrong key"):
        await think(*chain)


async def test_a_call_ends_with_the_time_there_is() -> None:
    model, other, books = Flaky("a:x", 1000.0), Flaky("b:y"), Ledger()
    began = now_s()

    with pytest.raises(ModelError, match="time that was left") as caught:
        await think(model, other, within_s=20.0, books=books)

    # Nobody knows what it came to, so it is not taken for free.
    assert (caught.value.kind, caught.value.began) == ("passing", True)
    assert now_s() - began == pytest.approx(20, abs=0.1)
    # Nobody else is asked without any time to answer in.
    assert books.lines[-1] == ("failed", "a:x", 1)


async def test_the_books_may_lower_what_is_asked_or_stop_it() -> None:
    model = Flaky("a:x", OVERLOADED)
    await think(model, books=Ledger(max_tokens=300))
    assert [request.max_tokens for _, request in model.asked] == [300, 300]

    stopped = Flaky("a:x", OVERLOADED)
    with pytest.raises(RuntimeError, match="no more"):
        await think(stopped, Flaky("b:y"), books=Ledger(stop_at=2))
    assert len(stopped.asked) == 1


class Gate:
    """An account that counts what it admits, and what becomes of it."""

    def __init__(self, error: ModelError | None = None) -> None:
        self.error, self.settled = error, list[tuple[Any, Any, Any]]()

    async def admit(self, model: Model, request: ModelRequest, *, within_s: float, priority: int = 0) -> Gate:
        if self.error is not None and model.name == "a:x":
            raise self.error
        return self

    def settle(self, asked: Any, turn: Any, error: Any = None) -> None:
        self.settled.append((asked, turn, error))


async def test_every_call_is_settled_with_what_became_of_it() -> None:
    gate = Gate()
    turn, _, _ = await think(Flaky("a:x", LIMITED), account=gate, books=Ledger(max_tokens=5))
    assert [entry[1:] for entry in gate.settled] == [(None, LIMITED), (turn, None)]
    assert all(asked.max_tokens == 5 for asked, _, _ in gate.settled)

    gate = Gate()
    with pytest.raises(RuntimeError):
        await think(Flaky("a:x"), account=gate, books=Ledger(stop_at=1))
    assert gate.settled == [(None, None, None)]

    gate = Gate()
    task = asyncio.create_task(think(Flaky("a:x", 1000.0), account=gate))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(gate.settled) == 1
    assert gate.settled[0][0] is not None


async def test_an_account_without_room_in_time_is_a_reason_to_fall_back() -> None:
    full = ModelError("no room", kind="limit", retry_after_s=PLENTY_S)

    turn, heard, books = await think(Flaky("a:x"), Flaky("b:y"), account=Gate(full))

    assert turn.model == "b:y"
    assert heard.events[0]["why"] == "no room"
    assert books.lines == [("asking", "b:y", 1)]


async def test_who_fell_back_stays_with_that_model() -> None:
    chain = (Flaky("anthropic:claude-x"), Flaky("openai:gpt-y"))

    assert [model.name for model in chain_from(chain, "openai:gpt-y")] == ["openai:gpt-y"]
    assert chain_from(chain, "gone:z") == chain
