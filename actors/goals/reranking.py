"""A model puts the topics that a search found into order; where it can't, they stay as they are."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence

from squadron.actors.thinking.catalog import spent_of
from squadron.actors.thinking.fence import CARD, FENCE_RULE
from squadron.actors.thinking.model import ChatMessage, Model, ModelRequest
from squadron.runtime.errors import ModelError
from squadron.runtime.running.context import TurnContext
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
_LIST = re.compile(r"\[[\d,\s]*\]")


async def reranked(
    ctx: TurnContext, model: Model, intent: str, found: Sequence[SemanticTopic]
) -> list[SemanticTopic]:
    """The topics in the order in which a model finds them of use; those that it leaves out are left out.

    What it costs is charged to the task. The order stays as it was when the model fails, answers something else,
    takes too long, or when the budget has no room for it.
    """
    shown, left = list(found[:MOST_SHOWN]), ctx.ledger.left.tokens
    if len(shown) < 2 or (left is not None and left < MOST_TOKENS):
        return list(found)
    try:
        async with asyncio.timeout(min(WITHIN_S, max(0.0, ctx.deadline.remaining_s() / 4))):
            turn = await model.think(_request(intent, shown))
    except (ModelError, TimeoutError) as error:
        ctx.log.info("rerank.failed", model=model.name, error=str(error) or "no answer in time")
        return list(found)
    ctx.ledger.charge(spent_of(turn.model or model.name, turn.usage))
    if (chosen := _chosen(turn.text, len(shown))) is None:
        ctx.log.info("rerank.no_order", model=model.name)
        return list(found)
    return [shown[number] for number in chosen]


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
    numbers = json.loads(lists[-1].replace(",]", "]"))
    places = [number - 1 for number in dict.fromkeys(numbers) if 0 < number <= count]
    return places if places or not numbers else None
