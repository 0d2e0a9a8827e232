"""A server of another protocol as an agent: what it can do becomes topics, run by replicas as any other's.

A protocol is a subclass that is importable wherever replicas run, with `operations_now` and `perform`. It is used
as

    Weather = McpAgent.serving("mcp_weather", server, operations)
    await squad.deploy(Weather)

The class that this makes is data: it travels as the import path of the subclass and a JSON text with `server` and
the operations, so it is the same on each machine, and no secret is in it as long as `server` names places
(`env:NAME`). A replica that finds out that the server can do something else yields the new operations from
`changes`; the bridge then has the agent deployed with those (`bridge/serve/offers.py`).
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from squadron.actors.agent import Agent
from squadron.actors.operations import OPERATIONS, Operation
from squadron.runtime.errors import InvalidAgentError, SquadronError
from squadron.runtime.running.context import TurnContext
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.subjects import check_token, token_of
from squadron.runtime.wire.topics import SemanticTopic

#: Operations of one server: a model that is shown more has trouble to choose.
MOST_OPERATIONS = 1_000


class RemoteAgent(Agent, ABC):
    """Base of agents that stand for a server elsewhere. All topics of one are in the domain of its name.

    Attributes:
        server: how to reach it, as JSON data.
        run_timeout_s: longest run of one operation, in seconds; people may be asked meanwhile.
        ports: those of the process that it runs in, before `on_start`: for servers on the same NATS.
    """

    server: ClassVar[Mapping[str, Any]] = {}
    ports: Ports
    run_timeout_s: ClassVar[float] = 600.0

    @abstractmethod
    async def operations_now(self) -> Sequence[Operation]:
        """What the server can do now, in an order that stays; after `on_start`.

        Raises:
            SquadronError: it can't be reached.
        """

    @abstractmethod
    async def perform(self, operation: Operation, content: dict[str, Any], ctx: TurnContext) -> Any:
        """Have the server do one, and return what came of it as JSON data; see `Performs`."""

    async def changes(self) -> AsyncIterator[Sequence[Operation]]:
        """The operations, each time the server says that they changed; by default never."""
        await asyncio.Event().wait()
        yield ()

    @classmethod
    def topic_for(cls, agent: str, operation: str, **fields: Any) -> SemanticTopic:
        """The topic of an operation: `AGENT.OPERATION`, with a digest where its name can't stand in a subject."""
        return SemanticTopic(name=f"{agent}.{token_of(operation)}", **fields)

    @classmethod
    def peer(cls) -> str:
        """Whom on the same NATS it asks, as roles have it: `mcp:ID`, say. Nobody, by default."""
        return ""

    @classmethod
    def current(cls) -> tuple[Operation, ...]:
        """The operations of this class."""
        found: tuple[Operation, ...] = getattr(cls, OPERATIONS, ())
        return found

    @classmethod
    def serving(
        cls, name: str, server: Mapping[str, Any], operations: Sequence[Operation], *, description: str = ""
    ) -> type[Self]:
        """The agent class of one server.

        Args:
            name: of the agent, and the domain of its topics.
            server: how it is reached, as JSON data without secrets.

        Raises:
            InvalidAgentError: there are no operations or too many, or one is in another domain.
        """
        check_token(name, "name")
        if not operations or len(operations) > MOST_OPERATIONS:
            what = f"{name} has {len(operations) or 'no'} operations"
            raise InvalidAgentError(what, hint=f"1 to {MOST_OPERATIONS} can be topics")
        for each in operations:
            if each.topic.is_pattern or each.topic.name.partition(".")[0] != name:
                raise InvalidAgentError(f"{each.topic.name} is no topic of {name}", hint=f"{name}.NAME")
        attributes = {"name": name, "server": dict(server), "__doc__": description, OPERATIONS: tuple(operations)}
        # Of its base: that is what is imported, and what errors should name.
        made: type[Self] = type(cls.__name__, (cls,), attributes | {"__module__": cls.__module__})
        return made

    @classmethod
    def made_of(cls) -> str:
        """What the class is made of, as JSON; see `remade`."""
        operations = [each.to_dict() for each in cls.current()]
        said = {"name": cls.name, "server": cls.server, "operations": operations, "description": cls.__doc__ or ""}
        return json.dumps(said, ensure_ascii=False)

    @classmethod
    def remade(cls, made_of: str, operations: Sequence[Mapping[str, Any]] | None = None) -> type[Self]:
        """The class that `made_of` tells of, with other operations if some are given.

        Raises:
            InvalidAgentError: that tells of none.
        """
        try:
            said = json.loads(made_of)
            given = said["operations"] if operations is None else operations
            found = [Operation.of_dict(dict(each)) for each in given]
            return cls.serving(said["name"], said["server"], found, description=said["description"])
        except SquadronError as error:
            raise InvalidAgentError(str(error.args[0]), hint=error.hint) from None
        except (ValueError, TypeError, LookupError) as error:
            raise InvalidAgentError(f"that is no {cls.__name__}: {error}") from None
