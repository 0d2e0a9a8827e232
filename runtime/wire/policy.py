"""Who may ask what, and how much: the lists of topics, and the policy of an environment."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from squadron.runtime.errors import ConfigError, InvalidSubjectError
from squadron.runtime.trust.principals import ROLES
from squadron.runtime.wire.limits import MOST_USD, Budget
from squadron.runtime.wire.subjects import check_pattern, matches

_NAME = r"[A-Za-z0-9_-]{1,64}"
_ROLE = "|".join(ROLES)
#: One principal, as in `client:ann`.
PRINCIPAL = re.compile(rf"({_ROLE}):{_NAME}")
_WHO = re.compile(rf"(\*|{_ROLE}):(\*|{_NAME}\*?)")


def check_who(who: str) -> str:
    """Check a pattern of principals: `ROLE:NAME`, either of which may be `*`; a name may end in `*`.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(who, str) or _WHO.fullmatch(who) is None:
        raise ValueError(
            f"{str(who)[:80]!r} is no ROLE:NAME like 'client:ann', 'agent:*' or 'agent:team-*'; "
            f"roles are {', '.join(ROLES)}"
        )
    return who


def fits(principal: str, patterns: Sequence[str]) -> bool:
    """Whether a principal (`client:ann`) is among those that these patterns stand for."""
    role, _, name = principal.partition(":")
    for pattern in patterns:
        its_role, _, its_name = pattern.partition(":")
        if its_role not in ("*", role):
            continue
        if name.startswith(its_name[:-1]) if its_name.endswith("*") else name == its_name:
            return True
    return False


def _check_topics(pattern: str) -> str:
    try:
        return check_pattern(pattern)
    except InvalidSubjectError as error:
        # Pydantic says where, of a ValueError only.
        raise ValueError(str(error)) from None


Who = Annotated[str, AfterValidator(check_who)]
TopicPattern = Annotated[str, AfterValidator(_check_topics)]


class _Said(BaseModel):
    """What somebody wrote into a policy: no field that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Rule(_Said):
    """Who may ask these topics, and publish events on them; nobody if `allow` is empty."""

    topics: tuple[TopicPattern, ...] = Field(min_length=1)
    allow: tuple[Who, ...]


class Limit(_Said):
    """How much each of these principals may ask of these topics.

    Attributes:
        tasks_per_minute: a minute's worth may come at once.
        tokens_per_task, usd_per_task: longest budget of a task.
        tokens_per_day, usd_per_day: what its tasks may spend in a day (UTC) before further ones are refused.
    """

    who: tuple[Who, ...] = Field(min_length=1)
    topics: tuple[TopicPattern, ...] = ("*.*",)
    tasks_per_minute: int | None = Field(default=None, ge=1, le=10**9, strict=True)
    tokens_per_task: int | None = Field(default=None, ge=1, le=10**15, strict=True)
    usd_per_task: float | None = Field(default=None, gt=0, le=MOST_USD)
    tokens_per_day: int | None = Field(default=None, ge=1, le=10**15, strict=True)
    usd_per_day: float | None = Field(default=None, gt=0, le=MOST_USD)

    @property
    def is_counted(self) -> bool:
        """Whether anything has to be remembered from task to task."""
        return any(each is not None for each in (self.tasks_per_minute, self.tokens_per_day, self.usd_per_day))

    @property
    def per_task(self) -> Budget:
        """What one task may spend."""
        return Budget(tokens=self.tokens_per_task, usd=self.usd_per_task)

    def left_of_day(self, tokens: int, usd: float) -> Budget:
        """What may still be spent today, after so much."""
        return Budget(
            tokens=None if self.tokens_per_day is None else max(0, self.tokens_per_day - tokens),
            usd=None if self.usd_per_day is None else max(0.0, self.usd_per_day - usd),
        )


@dataclass(frozen=True, slots=True)
class Ruling:
    """Whether a chain of principals may ask a topic.

    Attributes:
        by: what decides: `allow` (of the topic's card), `rules.0` (of the policy), or "" if nothing forbids it.
        reason: in words.
    """

    allowed: bool
    by: str = ""
    reason: str = ""


_FREE = Ruling(True, reason="nothing forbids it")


class Policy(_Said):
    """Who may ask what, and how much, beside what cards say; comes from a file.

    Of the rules the first one counts that has the topic. What a topic's own `allow` forbids no rule allows.
    """

    rules: tuple[Rule, ...] = ()
    limits: tuple[Limit, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a policy from a file of TOML (`.toml`) or JSON.

        Raises:
            ConfigError: it can't be read, or is no policy; names the field.
        """
        import tomllib

        try:
            data = path.read_text(encoding="utf-8")
            return cls.model_validate(tomllib.loads(data) if path.suffix == ".toml" else json.loads(data))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            hint = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"policy {path.name}: field {field!r} can't be used", hint=hint) from None
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"the policy {path} can't be read: {error}", hint="SQUADRON_POLICY: a file of TOML or JSON"
            ) from None

    def rule_on(self, chain: Sequence[str], topic: str, allow: Sequence[str] = ()) -> Ruling:
        """Whether all of a chain may ask a topic (or publish an event on it).

        Args:
            chain: on whose behalf, oldest first, and at last who asks; each has to be allowed.
            allow: that of the topic's card; empty allows everybody.
        """
        if not allow and not self.rules:
            return _FREE
        for who in chain:
            if allow and not fits(who, allow):
                return Ruling(False, "allow", f"{who} may not ask {topic}, which is for {', '.join(allow)}")
        number = next((i for i, rule in enumerate(self.rules) if _has(rule.topics, topic)), None)
        by = "" if number is None else f"rules.{number}"
        if number is not None:
            allow_too = self.rules[number].allow
            for who in chain:
                if not fits(who, allow_too):
                    only = ", ".join(allow_too) or "nobody"
                    return Ruling(False, by, f"{who} may not ask {topic}: by {by} of the policy it is for {only}")
        by = ", ".join(filter(None, ("allow" if allow else "", by)))
        return Ruling(True, by, f"allowed by {by}") if by else _FREE

    def limits_of(self, who: str, topic: str) -> Iterator[tuple[int, Limit]]:
        """The limits that hold for a principal on a topic, with their places in the policy."""
        for number, limit in enumerate(self.limits):
            if fits(who, limit.who) and _has(limit.topics, topic):
                yield number, limit


@lru_cache(maxsize=4096)
def _has(patterns: tuple[str, ...], topic: str) -> bool:
    return any(pattern == topic or matches(pattern, topic) for pattern in patterns)


#: Where nobody said anything; made so that nothing is built for it.
NO_POLICY = Policy.model_construct()
