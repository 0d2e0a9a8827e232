"""A model puts the topics that a search found into order; where it can't, they stay as they are."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import replace

from squadron.actors.thinking.account import accounts_of, tokens_in
from squadron.actors.thinking.catalog import Estimate, reserve_for, spent_by_failure, spent_of
from squadron.actors.thinking.fence import CARD, FENCE_RULE
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest, ModelTurn
from squadron.runtime.errors import BudgetError, ModelError
from squadron.runtime.retries import summary_of
from squadron.runtime.running.context import TurnContext
from squadron.runtime.running.ledger import ONCE
from squadron.runtime.wire.spent import NOTHING
from squadron.runtime.wire.topics import SemanticTopic

#: Topics that are shown to the model, and characters of what each says of itself: about 60 tokens each.
MOST_SHOWN, MOST_CHARS = 24, 200
#: Characters of the intent that are shown.
MOST_INTENT = 2_000
#: Tokens that are set aside for one order: 24 topics, the intent and the answer.
MOST_TOKENS = 4_000
#: Tokens of the answer, which is a list of numbers; models that think first need some for that.
MOST_ANSWERED = 400
#: Longest wait for it, in seconds.
WITHIN_S = 15.0

_PROMPT = (
    "You choose tools. Below are an intent and numbered tools. Answer with nothing but a JSON array of the "
    "numbers of those that are of use for the intent, the best first; [] if none is.\n"
)
#: Also one that is no JSON, as `[2 1]` or `[1,,2]`.
_LIST, _NUMBER = re.compile(r"\[[\d,\s]*\]", re.ASCII), re.compile(r"\d+")


async def reranked(
    ctx: TurnContext, model: Model, intent: str, found: Sequence[SemanticTopic]
) -> list[SemanticTopic]:
    """The topics in the order in which a model finds them of use; those that it leaves out are left out.

    What it costs is charged to the task. The order stays as it was when the model fails, answers something else,
    takes too long, or when the budget has no room for it.
    """
    shown, left = list(found[:MOST_SHOWN]), ctx.ledger.left
    if len(shown) < 2 or (left.tokens is not None and left.tokens < MOST_TOKENS):
        return list(found)
    request = _request(intent, shown)
    try:
        # No more than half, so that there is something left to call what is found.
        estimate = reserve_for(
            model.name, left.share(1), known=0, new=tokens_in(request), max_tokens=MOST_ANSWERED
        )
        async with asyncio.timeout(min(WITHIN_S, max(0.0, ctx.deadline.remaining_s() / 4))):
            turn = await _asked(ctx, model, replace(request, max_tokens=estimate.max_tokens), estimate)
    except Exception as error:
        # Anybody may write a model, and no run fails for want of an order.
        expected = isinstance(error, ModelError | BudgetError | TimeoutError)
        (ctx.log.info if expected else ctx.log.warning)("rerank.failed", model=model.name, error=summary_of(error))
        return list(found)
    if (chosen := _chosen(turn.text, len(shown))) is None:
        ctx.log.info("rerank.no_order", model=model.name)
        return list(found)
    return [shown[number] for number in chosen]


async def _asked(ctx: TurnContext, model: Model, request: ModelRequest, estimate: Estimate) -> ModelTurn:
    """The model's answer, in the books of the task and of the account that pays for it."""
    key, spent = f"{ONCE}{os.urandom(16).hex()}", NOTHING
    grant, turn, failure = None, None, None
    ctx.ledger.reserve(key, estimate.amount)
    try:
        accounts, priority = accounts_of(ctx.caller), ctx.message.routing.priority
        grant = await accounts.admit(model, request, within_s=WITHIN_S, priority=priority)
        # What is cut off may have cost all of it.
        spent = estimate.amount
        turn = await model.think(request)
        spent = spent_of(turn.model or model.name, turn.usage)
        return turn
    except ModelError as error:
        failure = error
        spent = replace(spent_by_failure(model.name, error, estimate), rounds=spent.rounds)
        raise
    finally:
        ctx.ledger.settle(key, spent)
        if grant is not None:
            grant.settle(request, turn, failure)


def _request(intent: str, shown: Sequence[SemanticTopic]) -> ModelRequest:
    tools = "\n".join(
        f"{number}. {each.name}: {' '.join(each.tool_description.split())[:MOST_CHARS]}"
        for number, each in enumerate(shown, 1)
    )
    asked = f"Intent: {intent[:MOST_INTENT]}\n\n{CARD.around(tools)}"
    messages = (ChatMessage("system", _PROMPT + FENCE_RULE), ChatMessage("user", asked))
    return ModelRequest(messages, max_tokens=MOST_ANSWERED)


def _chosen(text: str, count: int) -> list[int] | None:
    """The places that an answer names, each once; None if it names none that there are, but for an empty list."""
    if not (lists := _LIST.findall(text)):
        return None
    inside = lists[-1].strip("[]")
    known = {str(place + 1): place for place in range(count)}
    said = dict.fromkeys(number.lstrip("0") for number in _NUMBER.findall(inside))
    places = [known[number] for number in said if number in known]
    return places if places or not inside.strip() else None
