"""What a call cost, of which kind an error is, and how long a silent provider is waited for."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from squadron.actors.thinking.assemble import TurnParts, roughly
from squadron.actors.thinking.model import ModelTurn, Usage
from squadron.actors.thinking.openai_chat import _text_of
from squadron.actors.thinking.provider_errors import retry_after_s
from squadron.runtime.errors import ModelError
from tests.llm_playing import ANTHROPIC, CHAT, ON_ANTHROPIC, RESPONSES, TIME, TOOLS, TURN, USER, Provider, said
from tests.llm_servers import Broken, HttpError

# Usage


async def test_usage_is_told_with_what_came_from_the_cache_and_was_thought(play: Any, provider: Provider) -> None:
    usage = Usage(1_000, 90, cache_read=700, cache_write=200, reasoning=60)
    if provider is CHAT:
        usage = replace(usage, cache_write=0)  # it is not told on this wire
    turn = await play([replace(TURN, usage=usage)]).think()
    assert turn.usage == usage
    assert turn.tokens == 1_090


async def test_what_is_not_told_is_estimated(play: Any) -> None:
    played = play([replace(TURN, text="x" * 300), ModelTurn("", (TIME,))], tells_usage=False)
    usage = (await played.think()).usage
    assert usage.estimated
    assert usage.output >= 100
    # More was asked, so more was read.
    assert (await played.think([*USER] * 100, TOOLS)).usage.input > usage.input >= roughly(len(USER[0].content))


async def test_a_told_usage_is_no_estimate(play: Any) -> None:
    assert not (await play([TURN]).think()).usage.estimated


@pytest.mark.parametrize("how", ["cut", "end", "error"])
async def test_a_broken_stream_is_paid(play: Any, provider: Provider, how: Any) -> None:
    long = ModelTurn("x" * 600, usage=Usage(1_000, 200))
    error = await play([Broken(long, how)]).error()
    assert (error.kind, error.retryable, error.began) == ("passing", True, True)
    # Half of it had come, and Anthropic says at the beginning what it read.
    assert error.tokens >= (1_090 if provider is ANTHROPIC else 90)


async def test_an_error_before_the_stream_costs_nothing(play: Any) -> None:
    error = await play([503]).error()
    assert (error.tokens, error.began) == (0, False)


async def test_a_refusal_is_paid(play: Any) -> None:
    error = await play([Broken(replace(TURN, usage=Usage(52_000, 9)), "refusal")]).error()
    assert (error.kind, error.tokens) == ("refusal", 52_009)


# Stops


@ON_ANTHROPIC
async def test_an_overflow_in_the_middle_is_a_stop(play: Any, provider: Provider) -> None:
    assert said(await play([Broken(TURN, "overflow")]).think()) == replace(TURN, stop="overflow")


async def test_a_turn_says_who_said_it_and_under_which_id(play: Any) -> None:
    played = play([TURN], model="some-model")
    turn = await played.think()
    assert turn.model == played.model.name
    assert turn.model.endswith(":some-model")
    assert turn.response_id


# Kinds of errors


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (HttpError(400, "prompt is too long: 212008 tokens > 200000 maximum"), "overflow"),
        (
            HttpError(400, "input length and `max_tokens` exceed context limit: 190000 > 20000"),
            "overflow",
        ),
        (HttpError(400, "Your input exceeds the limit", "context_length_exceeded"), "overflow"),
        (HttpError(400, "This model's maximum context length is 131072 tokens"), "overflow"),
        (HttpError(400, "the request exceeds the available context size"), "overflow"),
        (HttpError(413, "Request exceeds the maximum size"), "overflow"),
        (HttpError(400, "we can't help", "content_filter"), "refusal"),
        (HttpError(400, "we can't help", "invalid_prompt"), "refusal"),
        (HttpError(400, "tools.3.custom.input_schema: context is no keyword"), "request"),
        (HttpError(404, "model: not found"), "request"),
        (HttpError(400, "Your credit balance is too low"), "key"),
        (HttpError(429, "You exceeded your current quota", "insufficient_quota"), "key"),
        (HttpError(401, "invalid x-api-key"), "key"),
        (HttpError(400, "Tool call validation failed", "tool_use_failed"), "passing"),
        (HttpError(429, "Rate limit reached"), "limit"),
        (HttpError(408, "timeout"), "passing"),
        (HttpError(529, "Overloaded"), "passing"),
    ],
)
async def test_each_error_is_of_one_kind(play: Any, answer: HttpError, kind: str) -> None:
    error = await play([answer]).error()
    assert (error.kind, error.retryable) == (kind, kind in ("limit", "passing"))
    assert answer.message in str(error)
    assert error.hint


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "3600"}, 3_600.0),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "nan", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "-1", "retry-after": "7"}, 7.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({}, None),
    ],
)
async def test_a_wait_that_is_asked_for_is_told(play: Any, headers: dict[str, str], seconds: float | None) -> None:
    error = await play([HttpError(429, "slow down", headers=headers)]).error()
    assert error.retry_after_s == seconds


def test_a_date_to_wait_for_is_read() -> None:
    then = datetime.now(UTC) + timedelta(hours=1)
    told = retry_after_s({"retry-after": format_datetime(then, usegmt=True)})
    assert told is not None
    assert 3_000 < told <= 3_600


@pytest.mark.parametrize("provider", [RESPONSES], indirect=True, ids=["openai-responses"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *[("server_error", "passing"), ("rate_limit_exceeded", "limit"), ("invalid_prompt", "refusal")],
        *[("context_length_exceeded", "overflow"), ("image_too_large", "request"), (None, "request")],
    ],
)
async def test_a_response_that_fails_says_how(play: Any, code: str | None, kind: str) -> None:
    from openai.types.responses import ResponseFailedEvent

    usage = {"input_tokens": 40, "output_tokens": 2, "total_tokens": 42}
    error = {"code": code, "message": "it did not work"} if code else None
    response = {"id": "resp_1", "status": "failed", "output": [], "usage": usage, "error": error}
    event = ResponseFailedEvent.construct(type="response.failed", response=response, sequence_number=3)
    with pytest.raises(ModelError) as caught:
        play([TURN]).model._read(TurnParts(None), event)
    assert (caught.value.kind, caught.value.tokens) == (kind, 42)
    assert ("it did not work" in str(caught.value)) is (code is not None)


# Silence


@pytest.fixture
def held() -> Any:
    """A hook that holds an answer back at one of its events until the test is over."""
    released = threading.Event()
    yield lambda at: lambda number: number == at and released.wait()
    released.set()


async def test_a_provider_that_says_nothing_is_given_up(play: Any, held: Any) -> None:
    played = play([TURN], before_event=held(0), times={"first_event_s": 0.05})
    error = await played.error()
    assert (error.kind, error.began) == ("passing", False)
    assert "silent for 0.05 s" in str(error)


async def test_a_stream_that_stalls_is_given_up_and_what_came_is_paid(play: Any, held: Any) -> None:
    long = ModelTurn("x" * 600, usage=Usage(1_000, 200))
    # The first of the text is there by then on each wire.
    played = play([long], before_event=held(12), times={"between_events_s": 2.0})
    error = await played.error()
    assert (error.kind, error.began) == ("passing", True)
    assert "silent for 2 s" in str(error)
    assert "".join(played.text) in long.text
    assert error.tokens > 0


async def test_a_server_that_is_only_slow_is_heard_to_the_end(play: Any) -> None:
    waits = threading.Event()
    played = play([TURN], before_event=lambda number: waits.wait(0.02), times={"between_events_s": 30.0})
    assert said(await played.think()) == TURN


# What can't be read


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}], "a"),
        ([{"type": "text", "text": None}, "b", 3], ""),
        ("c", "c"),
        ({"type": "text", "text": "d"}, ""),
        (None, ""),
        (7, ""),
    ],
)
def test_content_of_any_form_is_read(content: Any, text: str) -> None:
    assert _text_of(content) == text


async def test_an_event_that_makes_no_sense_is_an_error_of_the_provider(play: Any) -> None:
    class Odd:
        def __getattr__(self, name: str) -> Any:
            raise TypeError("what is that?")

    with pytest.raises(ModelError, match="can't be read") as caught:
        play([TURN]).model._read(TurnParts(None), Odd())
    assert caught.value.kind == "request"  # it would be the same again, and paid again
