"""Agents of the Synadia Agent Protocol as an agent: each of them is a topic."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, ClassVar

from squadron.actors.operations import Operation
from squadron.actors.remote.foreign_schemas import foreign_words
from squadron.actors.remote.remote_agent import RemoteAgent
from squadron.actors.remote.synadia_peers import SynadiaPeer, SynadiaPeers, answer_to, response
from squadron.runtime.errors import InvalidInputError, Terminal, UnansweredError
from squadron.runtime.running.context import TurnContext
from squadron.runtime.store.port_set import Ports
from squadron.runtime.wire.replies import principal_of
from squadron.runtime.wire.subjects import token_of

#: How it is called if nobody says otherwise.
SYNADIA = "synadia"
#: How often it is looked who is there, in seconds, if no heartbeat tells of news: theirs come that often (§8).
LOOK_S = 30.0
_ATTACHED = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"filename": {"type": "string"}, "content": {"type": "string", "contentEncoding": "base64"}},
        "required": ["filename", "content"],
    },
}
_OUTPUT = {"type": "object", "properties": {"text": {"type": "string"}, "attachments": _ATTACHED}}
_ANSWER = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


class SynadiaRemote(RemoteAgent):
    """Stands for the agents of others on this NATS: a topic for each, as long as it is there."""

    slots: ClassVar[int] = 64

    @classmethod
    def peer(cls) -> str:
        """Those that it looks for."""
        return f"synadia:{cls.server.get('agent') or '*'}.{cls.server.get('owner') or '*'}"

    async def on_start(self) -> None:
        """Hear who is there."""
        self._peers = peers_on(self.ports, **self.server)
        await self._peers.start()

    async def on_stop(self) -> None:
        """Hear nothing more."""
        await self._peers.aclose()

    async def operations_now(self) -> Sequence[Operation]:
        """Those that are there, by name."""
        return operations_of(await self._peers.now(), self.name)

    async def changes(self) -> AsyncIterator[Sequence[Operation]]:
        """Those that are there, each time they may be others; nobody at all is no news."""
        while True:
            if found := await self.operations_now():
                yield found
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._peers.news.wait()

    async def perform(self, operation: Operation, content: dict[str, Any], ctx: TurnContext) -> Any:
        """Prompt the agent; what it says is emitted as it comes, and is the result in the end.

        Raises:
            InvalidInputError: the prompt is longer than it takes.
            Terminal: it refuses, or failed.
            ServerUnavailableError: it is not there, or too busy; another attempt may help.
        """
        subject, most_bytes = operation.name, self._peers.most_bytes(operation.name)
        # To a gateway of ours this is one task, however often it is prompted; others pass over the key.
        body = json.dumps({**content, "key": ctx.message.id}).encode()
        if len(body) > most_bytes:
            what = f"{ctx.topic} takes prompts of {most_bytes:,} bytes, and this one has {len(body):,}"
            raise InvalidInputError(what, field="prompt")
        texts: list[str] = []
        attached: list[Any] = []
        async with contextlib.aclosing(self._peers.prompt(subject, body)) as messages:
            async for kind, data in messages:
                if kind == "response":
                    text, files = response(data)
                    texts.append(text)
                    attached += files
                    await ctx.emit(data)
                elif kind == "query":
                    await self._answer(data, ctx)
        return {"text": "".join(texts), "attachments": attached}

    async def _answer(self, data: Any, ctx: TurnContext) -> None:
        """Have people answer what it asks."""
        message, where = answer_to(data)
        try:
            reply = await ctx.ask_person(f"{ctx.topic} asks: {message}", schema=_ANSWER)
        except UnansweredError:
            raise Terminal(f"nobody answered what {ctx.topic} asks") from None
        if not reply.accepted:
            raise Terminal(f"what {ctx.topic} asks was not answered: {reply.action}")
        await self.ports.bus.publish(where, str(reply.content["answer"]).encode())


def peers_on(ports: Ports, agent: str = "", owner: str = "") -> SynadiaPeers:
    """Those on the bus of a process, without our own."""
    but, name = f"squadron-{ports.subjects.environment}", token_of(principal_of(ports.identity.id))
    return SynadiaPeers(ports.bus, name, but=but, agent=agent, owner=owner)


def operations_of(peers: Iterable[SynadiaPeer], agent: str) -> list[Operation]:
    """Agents as operations of one of ours."""
    made = []
    for peer in peers:
        fields: dict[str, Any] = {"prompt": {"type": "string"}}
        if peer.attachments:
            fields["attachments"] = _ATTACHED
        takes = {"type": "object", "properties": fields, "required": ["prompt"], "additionalProperties": False}
        topic = SynadiaRemote.topic_for(
            agent,
            peer.name,
            description=foreign_words(peer.description or peer.name),
            input_schema=takes,
            output_schema=_OUTPUT,
            tags=(SYNADIA, *peer.tags),
        )
        made.append(Operation(peer.subject, topic))
    return made
