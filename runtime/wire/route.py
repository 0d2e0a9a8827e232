"""Who may run a task: the sender's wishes, held against an agent and its replicas."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Self

from squadron.runtime.errors import InvalidInputError
from squadron.runtime.wire.envelope import AgentMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Which replica may run a task. Empty fields leave it open.

    Attributes:
        target: name of an agent, or id of one replica.
        capabilities: what the replica must have, all of it.
        exclusions: agents and replicas that must not run it.

    Raises:
        InvalidInputError: a field has a value that it can't have.
    """

    target: str = ""
    capabilities: tuple[str, ...] = ()
    exclusions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.target, str):
            raise _bad("target", self.target, "the name of an agent or of a replica")
        for name, texts in (("capabilities", self.capabilities), ("exclusions", self.exclusions)):
            is_many = isinstance(texts, Collection) and not isinstance(texts, str)
            if not is_many or not all(isinstance(each, str) for each in texts):
                raise _bad(name, texts, 'texts in a tuple: ("gpu",), for example')
            object.__setattr__(self, name, tuple(texts))

    @classmethod
    def of(cls, message: AgentMessage) -> Self | None:
        """The wishes in a message; None if it has none."""
        routing = message.routing
        if message.target is None and not routing.capabilities and not routing.exclusions:
            return None
        return cls(
            target=message.target or "",
            capabilities=tuple(routing.capabilities or ()),
            exclusions=tuple(routing.exclusions or ()),
        )

    def misfit(self, agent: str, replica: str, capabilities: Collection[str]) -> str:
        """Why this replica must not run it; the empty string if it may."""
        if self.target and self.target not in (agent, replica):
            return f"it is for {self.target!r}, not for {replica}"
        excluded = {agent, replica} & set(self.exclusions)
        if excluded:
            return f"{excluded.pop()} is excluded"
        if lacking := _without(self.capabilities, capabilities):
            return f"{replica} lacks {lacking}"
        return ""


def _bad(name: str, value: object, hint: str) -> InvalidInputError:
    return InvalidInputError(f"{name} of a route can't be {value!r}", field=name, hint=hint)


def _without(wanted: Iterable[str], have: Collection[str]) -> str:
    return ", ".join(each for each in wanted if each not in have)
