"""One limit per provider account, for all replicas: each replica books ahead for its callers, and settles."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping
from typing import TypeVar
from weakref import WeakKeyDictionary

from squadron.actors.thinking.credentials import given
from squadron.actors.thinking.lessee import Lessee
from squadron.actors.thinking.model import Model, ModelRequest
from squadron.actors.thinking.quota import AccountState, Limits
from squadron.actors.thinking.tokens import conversation_tokens, tools_tokens
from squadron.actors.thinking.tries import Grant
from squadron.runtime.asking.caller import Caller
from squadron.runtime.errors import ConfigError, FencedError
from squadron.runtime.ports.bus import Subscription
from squadron.runtime.ports.journal import Entry, Journal
from squadron.runtime.store.port_set import Ports
from squadron.runtime.telemetry.happenings import CallAdmitted
from squadron.runtime.wire.limits import Clock
from squadron.runtime.wire.subjects import check_token

T = TypeVar("T")

#: Life of what is known of an account, in seconds: after a minute of rest it has all that it may have.
KEPT_S = 120.0
#: First and longest pause after somebody else wrote first, in seconds: with 1 ms of jitter 16 writers on one key
#: do 946 changes a second, without any 326 (measured, ADR 0025); doubled, because there may be more of them.
FIRST_JITTER_S, LONGEST_JITTER_S = 0.001, 0.064
#: Those of each process; a test may have several in one.
_accounts: WeakKeyDictionary[Caller, Accounts] = WeakKeyDictionary()


def accounts_of(caller: Caller) -> Accounts:
    """The accounts of a process, with the limits that its environment sets.

    Raises:
        ConfigError: the setting `model_limits` can't be read.
    """
    if caller not in _accounts:
        limits = limits_from(given().get("SQUADRON_MODEL_LIMITS", ""))
        _accounts[caller] = Accounts(caller.ports, limits)
    return _accounts[caller]


def limits_from(text: str) -> dict[str, Limits]:
    """Read the setting `model_limits`: JSON, from a model, its beginning, or a provider to its limits.

    Raises:
        ConfigError: it is no such JSON; names what is wrong.
    """
    if not text.strip():
        return {}
    hint = 'give JSON like {"anthropic:claude-sonnet": {"rpm": 1000, "input_tpm": 450000}, "openai": {"rpm": 500}}'
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"model_limits is not JSON: {error}", hint=hint) from None
    if not isinstance(raw, dict):
        raise ConfigError("model_limits is not a JSON object", hint=hint)
    return {name: Limits.parse(limits, name) for name, limits in raw.items()}


def tokens_in(request: ModelRequest) -> int:
    """About how many tokens a request has, by the dearest way to count."""
    return conversation_tokens(request.messages) + tools_tokens(request.tools)


class AccountLog:
    """What all replicas know of one account: one key of a journal, changed by whoever read its newest entry.

    A pause is told on a key beside it as well, so that it is heard at once.
    """

    def __init__(self, journal: Journal, key: str, pauses: str, clock: Clock) -> None:
        self._journal, self._key, self._pauses, self._clock = journal, key, pauses, clock

    async def change(self, change: Callable[[AccountState], tuple[AccountState, T]]) -> T:
        """Carry out a change, anew when somebody else wrote first; what changes nothing is not written.

        Raises:
            BusUnavailableError: the journal is out of reach.
        """
        jitter_s = FIRST_JITTER_S
        while True:
            entry = await self._journal.last(self._key)
            before = AccountState.decode(entry.data, self._clock.time()) if entry is not None else AccountState()
            after, result = change(before)
            if after == before:
                return result
            try:
                seq = entry.seq if entry is not None else 0
                # A pause has to outlast the rest that it causes.
                ttl_s = KEPT_S + max(0.0, after.paused_until - self._clock.time())
                await self._journal.append(self._key, after.encode(), ttl_s=ttl_s, expect_seq=seq)
            except FencedError:
                await asyncio.sleep(random.uniform(0.0, jitter_s))
                jitter_s = min(LONGEST_JITTER_S, 2 * jitter_s)
            else:
                return result

    async def tell_pause(self, until: float) -> None:
        """Tell all who listen that nobody is to ask before `until`, in seconds since the epoch."""
        await self._journal.append(self._pauses, json.dumps(until).encode(), ttl_s=KEPT_S)

    async def hear_pauses(self, sink: Callable[[float], object]) -> Subscription:
        """Hear of pauses at once."""

        def hear(entry: Entry) -> None:
            # Anybody may write there; what is no time is none of ours.
            with contextlib.suppress(ValueError, TypeError, OverflowError, RecursionError):
                if math.isfinite(until := float(json.loads(entry.data))):
                    sink(until)

        return await self._journal.follow(self._pauses, hear)


class Accounts:
    """The provider accounts that one process uses; an `Account` for `think_patiently`. One for a process.

    Args:
        who: the replica's id, if that of the ports stands for several.
        limits: see `limits_from`. A model without any is only held by what its provider says with a 429.
        count: how many tokens a request has.
    """

    def __init__(
        self,
        ports: Ports,
        limits: Mapping[str, Limits],
        *,
        who: str = "",
        count: Callable[[ModelRequest], int] = tokens_in,
    ) -> None:
        self._ports, self._limits, self._count = ports, limits, count
        self._who = who or ports.identity.id
        self._lessees: dict[str, Lessee] = {}

    async def admit(self, model: Model, request: ModelRequest, *, within_s: float, priority: int = 0) -> Grant:
        """Wait until the call may be made; see `tries.Account`."""
        lessee, asked_at = self._lessee(model), self._ports.clock.time()
        grant = await lessee.admit(request, self._count(request), within_s=within_s, priority=priority)
        if (observers := self._ports.observers).on:
            waited_s = max(0.0, self._ports.clock.time() - asked_at)
            observers.tell(CallAdmitted(model=model.name, account=lessee.name, waited_s=waited_s))
        return grant

    async def aclose(self) -> None:
        """Give back what is left, and end. May be called twice."""
        lessees, self._lessees = list(self._lessees.values()), {}
        for lessee in lessees:
            await lessee.aclose()

    def _lessee(self, model: Model) -> Lessee:
        scope, limits = scope_of(model.name, self._limits)
        account = account_of(model, scope)
        if account not in self._lessees:
            # Lite topics, because they can be followed.
            subjects = self._ports.subjects
            key, pauses = subjects.lite("model-account", account), subjects.lite("model-pause", account)
            log = AccountLog(self._ports.lite, key, pauses, self._ports.clock)
            self._lessees[account] = Lessee(log, limits, self._ports.clock, self._who, scope)
        return self._lessees[account]


def scope_of(name: str, limits: Mapping[str, Limits]) -> tuple[str, Limits]:
    """The longest beginning of a model's name that has limits, which all models with that beginning share."""
    fitting = [scope for scope in limits if name.startswith(scope)]
    scope = max(fitting, key=len, default=name)
    return scope, limits.get(scope, Limits())


def account_of(model: Model, scope: str) -> str:
    """A token for the account that pays for a model: its provider, its key, and what shares a limit.

    A model says whose key it has by an attribute `account`; else it is that of the environment. A key that is
    kept at a place counts by that place: it stays the same account when it is rotated.
    """
    provider = model.name.partition(":")[0]
    said = given()
    variables = [f"{provider.upper()}_{what}" for what in ("API_KEY", "BASE_URL")]
    key = getattr(model, "account", "") or "\n".join(said.get(name, "") for name in variables)
    digest = hashlib.sha256(f"{key}\n{scope}".encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return check_token(f"{''.join(c for c in provider if c.isascii() and c.isalnum())[:32]}-{digest}", "account")
