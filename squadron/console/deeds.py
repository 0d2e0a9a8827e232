"""What people do from the console: each deed is a call of the client, then what it changes is looked at anew."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from squadron.client.deploying import Fleet
from squadron.runtime.errors import InvalidInputError, SquadronError
from squadron.runtime.redact import scrub_all
from squadron.runtime.streams.writer import Chunk, Restarted
from squadron.runtime.texts import json_text
from squadron.runtime.wire.subjects import check_token

#: How long a task that is asked here may take, in seconds.
ASK_WITHIN_S, ASK_MOST_S = 60.0, 3600.0

Body = Mapping[str, Any]


class Deeds:
    """The deeds, by their paths: each takes what the path names and the body."""

    def __init__(self, fleet: Fleet, look: Callable[[str], Awaitable[None]], by: str) -> None:
        self._fleet, self._look, self._by = fleet, look, by

    async def scale(self, agent: str, body: Body) -> dict[str, Any]:
        """Set the replicas of an agent: `{"to": "3" | "1..4" | "auto"}`."""
        scale = await self._fleet.scale(agent, _text(body, "to"))
        await self._look("agents")
        return {"agent": agent, "scale": scale}

    async def drain(self, agent: str, _: Body) -> dict[str, Any]:
        """Let running turns end and start none: what comes waits until it is scaled up again."""
        return await self.scale(agent, {"to": "0"})

    async def redeploy(self, agent: str, _: Body) -> dict[str, Any]:
        """Start all replicas anew with the same code."""
        await self._fleet.redeploy(agent)
        await self._look("agents")
        return {"agent": agent}

    async def canary(self, agent: str, body: Body) -> dict[str, Any]:
        """Give a canary another share, or end it: `{"to": 25 | "promote" | "abort"}`."""
        wish = _text(body, "to")
        to: Any = int(wish) if re.fullmatch(r"[0-9]{1,3}", wish) else wish
        # Replicas that start are seen to start: nobody waits for them here.
        await self._fleet.canary(agent, to, wait=False)
        await self._look("agents")
        return {"agent": agent, "to": wish}

    async def undeploy(self, agent: str, _: Body) -> dict[str, Any]:
        """Take an agent away; what waits in its mailbox is kept for its return."""
        await self._fleet.undeploy(agent)
        await self._look("agents")
        return {"agent": agent}

    async def answer(self, query: str, body: Body) -> dict[str, Any]:
        """Answer a question: `{"action": "accept" | "decline" | "cancel", "content": …}`."""
        action = _text(body, "action")
        if action not in ("accept", "decline", "cancel"):
            raise InvalidInputError(
                f"no such action: {action!r}", field="action", hint="accept, decline or cancel"
            )
        content = body.get("content")
        reply = await self._fleet.answer(query, content, action=action, by=self._by)  # type: ignore[arg-type]
        await self._look("questions")
        return reply.to_content()

    async def cancel(self, run: str, _: Body) -> dict[str, Any]:
        """Ask a run to stop, with all that it asked of others."""
        info = await self._fleet.runs.cancel(run)
        await self._look("runs")
        return {"run": info.run}

    async def redrive(self, body: Body) -> dict[str, Any]:
        """Put dead letters back: `{"letters": ["AGENT/TOKEN", …]}`, or `{"all": true, "topic": …, "agent": …}`."""
        letters = self._fleet.dead_letters
        if body.get("all") is True:
            done = await letters.redrive(all=True, topic=_text(body, "topic", ""), agent=_text(body, "agent", ""))
            told = {"redriven": list(done.ids), "left": {id: str(why) for id, why in done.left.items()}}
        else:
            ids: list[str] = []
            for agent, token in _letters(body):
                ids += (await letters.redrive(token, agent=agent)).ids
            told = {"redriven": ids, "left": {}}
        await self._look("letters")
        return told

    async def drop(self, body: Body) -> dict[str, Any]:
        """Erase dead letters for good: `{"letters": ["AGENT/TOKEN", …]}`."""
        dropped = 0
        for agent, token in _letters(body):
            dropped += await self._fleet.dead_letters.drop(token, agent=agent)
        await self._look("letters")
        return {"dropped": dropped}

    async def publish(self, owner: str, id: str, body: Body) -> dict[str, Any]:
        """Publish on a lite topic: `{"content": …}`."""
        if "content" not in body:
            raise InvalidInputError("there is nothing to publish", field="content")
        seq = await self._fleet.lite(id, owner).publish(body["content"])
        await self._look("lite")
        return {"seq": seq}

    async def close(self, owner: str, id: str, _: Body) -> dict[str, Any]:
        """End a lite topic, with all its messages."""
        await self._fleet.lite(check_token(id, "id"), owner).close()
        await self._look("lite")
        return {"closed": f"{owner}/{id}"}

    async def ask(self, body: Body) -> AsyncIterator[bytes]:
        """Ask a topic: `{"topic", "content", "within_s"}`; lines of JSON: the task, its chunks, its outcome.

        Raises:
            InvalidInputError: it can't be asked so; nothing was sent.
        """
        within_s = body.get("within_s", ASK_WITHIN_S)
        if isinstance(within_s, bool) or not isinstance(within_s, int | float) or not 0 < within_s <= ASK_MOST_S:
            hint = f"above 0, at most {ASK_MOST_S:g}"
            raise InvalidInputError("that is no time in seconds", field="within_s", hint=hint)
        topic = _text(body, "topic")
        # What does not fit has to be told as an error, and not as the outcome of a task.
        found = next((each.topic for each in self._fleet.topics() if each.topic.name == topic), None)
        if found is not None:
            found.check(found.wrap(body.get("content")))
        handle = await self._fleet.submit(topic, body.get("content"), within_s=float(within_s))

        async def lines() -> AsyncIterator[bytes]:
            yield _line({"task": handle.task_id})
            try:
                async with handle.events() as events:
                    async for event in events:
                        if isinstance(event, Chunk):
                            yield _line({"chunk": scrub_all(event.value)})
                        elif isinstance(event, Restarted):
                            yield _line({"restarted": True})
            except SquadronError as error:
                yield _line({"trouble": str(error)})
            outcome = await handle.outcome()
            yield _line({"outcome": {"kind": outcome.kind, **scrub_all(outcome.to_content())}})

        return lines()


def _line(value: Any) -> bytes:
    return (json_text(value) + "\n").encode()


def _text(body: Body, name: str, default: str | None = None) -> str:
    value = body.get(name, default)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} is missing, or no text", field=name, hint=f'{{"{name}": "…"}}')
    return value


def _letters(body: Body) -> list[tuple[str, str]]:
    """Agent and token of each letter that the body names."""
    named = body.get("letters")
    if (
        not isinstance(named, list)
        or not named
        or not all(isinstance(each, str) and "/" in each for each in named)
    ):
        hint = '{"letters": ["AGENT/TOKEN"]}'
        raise InvalidInputError("no letters are named", field="letters", hint=hint)
    return [(agent, token) for agent, _, token in (each.partition("/") for each in named)]
