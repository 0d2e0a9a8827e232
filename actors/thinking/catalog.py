"""What models cost and hold: list prices, prices of one's own, and what to set aside for a call."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from squadron.actors.thinking.credentials import given
from squadron.actors.thinking.model import Usage
from squadron.runtime.errors import BudgetError, ConfigError, ModelError
from squadron.runtime.wire.limits import Budget
from squadron.runtime.wire.spent import NOT_TOLD, NOTHING, Spent

#: Where prices of one's own are set, as JSON: model → US dollars per million tokens, and the window in tokens.
VARIABLE = "SQUADRON_PRICES"
_EXAMPLE = f"""{VARIABLE}='{{"openai:my-model": {{"input": 1.0, "output": 4.0}}}}'"""
#: Plans and scripts are carried out here, and nobody sends a bill.
_FREE = ("offline", "scripted")
#: What an estimate of tokens is multiplied by where a limit is hard: 5 % of texts are further off than this.
SAFETY = 1.3
#: Fewest tokens that an answer is worth asking for, and those set aside where nobody limits the answer: the limit
#: that our requests to Anthropic have.
LEAST_ANSWER, USUAL_ANSWER = 256, 16_384


class Price(BaseModel):
    """Prices of one's own of one model, in US dollars per million tokens; what the cache costs is as input if not
    said. `window` is the longest input and output in tokens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)
    cache_read: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    cache_write: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    window: int | None = Field(default=None, gt=0)

    def micros(self, usage: Usage) -> float:
        """The cost of a call: dollars per million tokens are micro-dollars per token."""
        read = self.input if self.cache_read is None else self.cache_read
        write = self.input if self.cache_write is None else self.cache_write
        plain = usage.input - usage.cache_read - usage.cache_write
        cached = usage.cache_read * read + usage.cache_write * write
        return plain * self.input + cached + usage.output * self.output


_PRICES = TypeAdapter(dict[str, Price])


@lru_cache(maxsize=8)
def read_prices(text: str) -> Mapping[str, Price]:
    """Prices as they are set in `SQUADRON_PRICES`.

    Raises:
        ConfigError: that is no such JSON; names the place.
    """
    try:
        return _PRICES.validate_json(text) if text.strip() else {}
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{VARIABLE}: {where or 'it'}: {first['msg']}", hint=f"for example {_EXAMPLE}") from None


def cost_of(model_name: str, usage: Usage) -> int | None:
    """What a call cost in millionths of a US dollar, rounded up; None if nobody knows the price.

    Args:
        model_name: `provider:model`, as `Model.name` has it.

    Raises:
        ConfigError: `SQUADRON_PRICES` can't be read.
    """
    usage = _consistent(usage)
    if own := _own(model_name):
        return math.ceil(round(own.micros(usage), 6))
    if _split(model_name)[0] in _FREE:
        return 0
    if _listed(model_name) is None:
        return None
    from genai_prices import Usage as Counts
    from genai_prices import calc_price

    provider, model = _split(model_name)
    counts = Counts(
        input_tokens=usage.input,
        output_tokens=usage.output,
        cache_read_tokens=usage.cache_read,
        cache_write_tokens=usage.cache_write,
        output_reasoning_tokens=usage.reasoning,
    )
    return math.ceil(calc_price(counts, model, provider_id=provider).total_price * 1_000_000)


def window_of(model_name: str) -> int | None:
    """How many tokens a model takes in one conversation; None if nobody knows.

    Raises:
        ConfigError: `SQUADRON_PRICES` can't be read.
    """
    own = _own(model_name)
    if own is not None and own.window is not None:
        return own.window
    listed = _listed(model_name)
    return None if listed is None else listed.context_window


def spent_of(model_name: str, usage: Usage) -> Spent:
    """What a call spent, as books have it; a model without a known price costs nothing there.

    Where the provider told nothing and nobody estimated it, neither do we: what was set aside stays charged.
    """
    if usage.estimated and not usage.total:
        return NOT_TOLD
    return Spent(tokens=usage.total, usd_micros=cost_of(model_name, usage) or 0, rounds=1)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What to set aside for one call.

    Attributes:
        amount: the most that it may cost.
        max_tokens: to make the call with; None: nobody limits them.
        input: tokens that it is likely to begin with.
    """

    amount: Spent
    max_tokens: int | None
    input: int


def reserve_for(model_name: str, left: Budget, *, known: int, new: int, max_tokens: int | None = None) -> Estimate:
    """What one call may cost at most, with as long an answer as can be paid.

    Args:
        left: what may still be spent.
        known: tokens of the conversation's beginning, as the last call's usage told.
        new: estimated tokens of what came since.
        max_tokens: longest answer that is wanted, thinking included; None is the model's own limit.

    Raises:
        BudgetError: there is not enough for an answer of `LEAST_ANSWER` tokens, or no price is known and the
            budget is in US dollars.
        ConfigError: `SQUADRON_PRICES` can't be read.
    """
    if left.rounds == 0:
        raise BudgetError("no call of a model is left in the budget", field="rounds", hint=_larger("rounds"))
    fresh = math.ceil(SAFETY * new)
    wanted = max_tokens or USUAL_ANSWER
    tokens, usd_micros, *_ = left.coins
    affordable = wanted
    if tokens is not None:
        affordable = min(affordable, tokens - known - fresh)
        _check_worth_it("tokens", affordable, wanted, left)
    most = _cost(model_name, known, fresh, affordable)
    if usd_micros is not None:
        if most is None:
            raise BudgetError(
                f"no price of {model_name} is known, so a budget in US dollars can't hold it",
                field="usd",
                hint=f"set it, in US dollars per million tokens: {_EXAMPLE}",
            )
        if most > usd_micros:
            # The price of an answer grows by the token.
            without = _cost(model_name, known, fresh, 0) or 0
            affordable = (usd_micros - without) * affordable // (most - without) if most > without else 0
            while affordable > 0 and (_cost(model_name, known, fresh, affordable) or 0) > usd_micros:
                affordable -= 1
            _check_worth_it("usd", affordable, wanted, left)
            most = _cost(model_name, known, fresh, affordable)
    amount = Spent(tokens=known + fresh + affordable, usd_micros=most or 0, rounds=1)
    is_limited = max_tokens is not None or tokens is not None or usd_micros is not None
    return Estimate(amount, affordable if is_limited else None, known + new)


def spent_by_failure(model_name: str, error: ModelError, estimate: Estimate) -> Spent:
    """What a call spent that brought no answer: refused, cut, or broken off.

    As far as the provider told; all that was set aside if it had begun to answer and told nothing; else nothing.
    """
    if error.tokens:
        known = min(error.tokens, estimate.input)
        return spent_of(model_name, Usage(input=known, output=error.tokens - known))
    return estimate.amount if error.began else NOTHING


async def load_prices() -> None:
    """Load the list of prices in a thread: it takes up to a second, once per process."""
    await asyncio.to_thread(_listed, "openai:gpt-4o")


def _cost(model_name: str, known: int, fresh: int, answer: int) -> int | None:
    # What is new may be written to the provider's cache, which costs more than reading it plainly.
    return cost_of(model_name, Usage(input=known + fresh, cache_write=fresh, output=answer))


def _check_worth_it(field: str, affordable: int, wanted: int, left: Budget) -> None:
    if affordable < min(LEAST_ANSWER, wanted):
        has = left.usd if field == "usd" else left.tokens
        raise BudgetError(
            f"the budget of {field} leaves {has:g}, too little for another answer of the model",
            field=field,
            hint=_larger(field),
        )


def _larger(field: str) -> str:
    return f"ask with a larger budget: Budget({field}=…)"


def _own(model_name: str) -> Price | None:
    return read_prices(given().get(VARIABLE, "")).get(model_name)


@lru_cache(maxsize=256)
def _listed(model_name: str) -> Any:
    """The entry of a model in the list of prices, or None."""
    # Imported late: it takes up to a second.
    from genai_prices.data_snapshot import get_snapshot

    provider, model = _split(model_name)
    try:
        return get_snapshot().find_provider_model(model, None, provider, None)[1]
    except LookupError:
        return None


def _split(model_name: str) -> tuple[str | None, str]:
    provider, colon, model = model_name.partition(":")
    return (provider, model) if colon else (None, model_name)


def _consistent(usage: Usage) -> Usage:
    """Parts that are no more than their whole: some servers count the cache beside the input."""
    read, write, output = max(0, usage.cache_read), max(0, usage.cache_write), max(0, usage.output)
    reasoning = max(0, min(usage.reasoning, output))
    return Usage(max(usage.input, read + write), output, read, write, reasoning, usage.estimated)
