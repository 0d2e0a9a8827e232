"""An A2A agent elsewhere as an agent here: each of its skills is a topic."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from squadron.actors.operations import Operation
from squadron.actors.remote.a2a_server import A2aServer
from squadron.actors.remote.foreign_schemas import foreign_schema, foreign_words
from squadron.actors.remote.remote_agent import RemoteAgent
from squadron.runtime.errors import ConfigError, SquadronError
from squadron.runtime.logs import get_logger
from squadron.runtime.running.context import TurnContext
from squadron.runtime.wire.a2a_names import SCHEMAS

if TYPE_CHECKING:
    from a2a.types import a2a_pb2 as pb

    from squadron.actors.remote.a2a_link import A2aLink

#: How often its card is looked at anew, in seconds: A2A tells of no changes.
LOOK_S = 60.0
#: Skills, examples and tags that are taken over.
MOST_EXAMPLES = 20

_log = get_logger("squadron.a2a")


class A2aAgent(RemoteAgent):
    """Stands for an A2A agent: replicas hand tasks on, and tell what comes of them."""

    slots: ClassVar[int] = 64

    async def on_start(self) -> None:
        """Look at its card.

        Raises:
            ConfigError: the extra is not installed, or a secret is not there.
            ServerUnavailableError: it can't be reached.
        """
        self._link = open_a2a(A2aServer.of(self.server))
        await self._link.card()

    async def on_stop(self) -> None:
        """Leave it."""
        await self._link.aclose()

    async def operations_now(self) -> Sequence[Operation]:
        """Its skills, by name."""
        return skills_of(await self._link.card(fresh=True), self.name)

    async def changes(self) -> AsyncIterator[Sequence[Operation]]:
        """Its skills, each time its card was looked at."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                yield await self.operations_now()
            except SquadronError as error:
                _log.info("a2a.no_card", agent=self.name, error=str(error))

    async def perform(self, operation: Operation, content: dict[str, Any], ctx: TurnContext) -> Any:
        """Send it a message, and see that through. A cancelled or late task is cancelled there, too.

        Raises:
            Terminal: it failed, was refused, or was cancelled there.
            ServerUnavailableError: it went away; the next attempt takes its task up.
        """
        from squadron.actors.remote.a2a_errand import Errand

        errand = Errand(await self._link.client(), await self._link.card(), operation, ctx)
        try:
            return await errand.run(content)
        except asyncio.CancelledError:
            # A replica that is drained leaves the task to the next one.
            if ctx.cancelled:
                await errand.cancel()
            raise


def open_a2a(server: A2aServer) -> A2aLink:
    """A connection to an agent, not yet opened.

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        from squadron.actors.remote.a2a_link import A2aLink
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "squadron":
            raise
        what = f"A2A agents need {error.name}, which is not installed"
        raise ConfigError(what, hint="pip install 'squadron-ray[a2a]'") from None
    return A2aLink(server)


async def look_at_card(server: A2aServer) -> pb.AgentCard:
    """The card of an agent.

    Raises:
        ConfigError: the extra is not installed, a secret is not there, or nothing of it is spoken here.
        UntrustedError: it is not signed by one of the keys that were given.
        ServerUnavailableError: it can't be reached.
    """
    link = open_a2a(server)
    try:
        return await link.card()
    finally:
        await link.aclose()


def skills_of(card: pb.AgentCard, agent: str) -> list[Operation]:
    """An agent's skills as operations, by name; those that can't be topics are left out, as the log says."""
    found: dict[str, Operation] = {}
    for skill in card.skills:
        try:
            operation = _operation(card, skill, agent)
        except (SquadronError, ValueError) as error:
            _log.warning("a2a.skill_left_out", agent=agent, skill=skill.id[:100], why=str(error)[:500])
            continue
        found.setdefault(operation.topic.name, operation)
    return [found[name] for name in sorted(found)]


def _operation(card: pb.AgentCard, skill: pb.AgentSkill, agent: str) -> Operation:
    schemas = schemas_in(card, skill.id)
    topic = A2aAgent.topic_for(
        agent,
        # Of a topic of ours its own part is enough: the domain is that of this agent.
        skill.id.rpartition(".")[2] if schemas else skill.id,
        description=foreign_words(skill.description or skill.name or skill.id),
        input_schema=foreign_schema(schemas.get("input") or _said(card, skill), skill.id),
        output_schema=foreign_schema(schemas.get("output") or {}, skill.id),
        examples=tuple(foreign_words(each) for each in skill.examples[:MOST_EXAMPLES]),
        tags=("a2a", *(foreign_words(each)[:100] for each in skill.tags[:MOST_EXAMPLES])),
    )
    return Operation(skill.id, topic)


def schemas_in(card: pb.AgentCard, skill: str) -> dict[str, Any]:
    """The schemas of a skill that its card tells by our extension; none if it does not."""
    from google.protobuf.json_format import MessageToDict

    for extension in card.capabilities.extensions:
        if extension.uri == SCHEMAS:
            with contextlib.suppress(ValueError, RecursionError):
                found = MessageToDict(extension.params).get(skill)
                return _whole_numbers(found) if isinstance(found, dict) else {}
    return {}


def _whole_numbers(schema: dict[str, Any]) -> dict[str, Any]:
    # Protobuf has no whole numbers: a `minLength` comes as 3.0, which Draft 2020-12 takes, and people don't.
    whole: dict[str, Any] = json.loads(
        json.dumps(schema), parse_float=lambda text: int(float(text)) if float(text).is_integer() else float(text)
    )
    return whole


def _said(card: pb.AgentCard, skill: pb.AgentSkill) -> dict[str, Any]:
    """What a skill takes that tells no schema: words, data where it says so, or both."""
    modes = [*(skill.input_modes or card.default_input_modes)]
    fields: dict[str, Any] = {}
    if not modes or any(each.startswith("text/") for each in modes):
        fields["text"] = {"type": "string", "description": "What it is told, in words."}
    if any("json" in each for each in modes):
        fields["data"] = {"type": "object", "description": "Data for it."}
    if not fields:
        raise ValueError(f"it takes {', '.join(modes)[:100]}, and neither text nor data")
    return {"type": "object", "properties": fields, "minProperties": 1, "additionalProperties": False}
