"""The door for callers of the Synadia Agent Protocol 0.3, on NATS alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.synadia.prompt_senders import PromptSenders
from squadron.bridge.gateways.synadia.prompt_wire import PromptError, refusal
from squadron.bridge.gateways.synadia.prompts import Prompts
from squadron.bridge.gateways.synadia.synadia_agents import (
    GROUP,
    HEARTBEAT_S,
    SERVICE,
    SynadiaAgent,
    SynadiaAgents,
)
from squadron.bridge.gateways.visitors import check_delegate
from squadron.runtime.background import spawn
from squadron.runtime.errors import SquadronError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.bus import Note, Subscription
from squadron.runtime.wire.subjects import INBOXES, ROOT, is_foreign

_log = get_logger("squadron.gateway")

#: Prompts that one process serves at a time; more are refused with 429.
MOST_PROMPTS = 10_000
#: After so many answers other work has its turn.
_AT_ONCE = 100


async def open_door(front: Front) -> SynadiaDoor:
    """The door, as the gateway opens it.

    Raises:
        UntrustedError: this process signs as somebody who may ask for nobody but itself.
    """
    check_delegate(front.place.ports.principal, tokens=True)
    return SynadiaDoor(front)


class SynadiaDoor:
    """Answers for all agents from a handful of subscriptions, however many there are.

    Processes of one gateway stand in groups: each request reaches one of them.
    """

    def __init__(self, front: Front) -> None:
        self._front, self._bus = front, front.place.ports.bus
        self._senders = PromptSenders(front.place.ports)
        self.agents = SynadiaAgents(front, self._senders.trust)
        self._prompts = Prompts(front, self._senders)
        self._serving, self._prompting = set[asyncio.Task[None]](), 0

    def routes(self) -> Sequence[Any]:
        """None: it needs no HTTP."""
        return ()

    def running(self) -> AbstractAsyncContextManager[None]:
        """Serve as long as this is entered."""
        return self._running()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        owner = self.agents.owner
        wanted = [(f"{ROOT}.prompt.*.{owner}.*", self._hear_prompt, GROUP)]
        wanted.append((f"{ROOT}.status.*.{owner}.*", self._hear_status, GROUP))
        # A group of the environment's: other services answer as well.
        wanted += [
            (each, self._hear_service, owner) for each in ("$SRV.*", f"$SRV.*.{SERVICE}", f"$SRV.*.{SERVICE}.*")
        ]
        heard: list[Subscription] = []
        beating = spawn(self._beat(), "heartbeats of synadia's agents", lasting=True)
        try:
            for pattern, sink, group in wanted:
                heard.append(await self._bus.subscribe(pattern, sink, group=group))
            yield
        finally:
            beating.cancel()
            for each in heard:
                await each.aclose()
            for task in self._serving:
                task.cancel()

    def _start(self, work: Any) -> None:
        task = spawn(work, "answers a request of synadia")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    def _hear_prompt(self, note: Note) -> None:
        if not _is_inbox(note.reply):
            return
        # Here, as of many that come at once the first are to be served.
        if self._prompting >= MOST_PROMPTS:
            self._start(self._refuse(note, 429, "too many prompts at a time"))
            return
        self._prompting += 1
        self._start(self._answer(note))

    async def _answer(self, note: Note) -> None:
        try:
            await self._prompts.serve(note, self._named(note))
        except PromptError as error:
            await self._refuse(note, error.code, str(error.args[0]))
        except SquadronError as error:
            await self._refuse(note, 500, str(error.args[0]))
        except Exception as error:
            _log.error("prompt.failed", subject=note.subject[:200], error=type(error).__name__)
            await self._refuse(note, 500, "the gateway failed")
        finally:
            self._prompting -= 1

    def _named(self, note: Note) -> SynadiaAgent:
        _, _, agent, _, session = note.subject.split(".")
        found = self.agents.find(agent, session)
        if found is None:
            raise PromptError(404, f"there is no agent {agent}.{session}")
        return found

    async def _refuse(self, note: Note, code: int, reason: str) -> None:
        headers, body = refusal(code, reason)
        with suppress(SquadronError):
            await self._tell(note, body, headers)
            await self._tell(note, b"")

    async def _tell(self, note: Note, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        await self._bus.publish(note.reply, data, headers=headers, signed=False)

    def _hear_status(self, note: Note) -> None:
        if _is_inbox(note.reply):
            self._start(self._tell_status(note))

    async def _tell_status(self, note: Note) -> None:
        try:
            await self._tell(note, self._named(note).heartbeat())
        except PromptError as error:
            await self._refuse(note, error.code, str(error.args[0]))

    def _hear_service(self, note: Note) -> None:
        if _is_inbox(note.reply):
            self._start(self._tell_service(note))

    async def _tell_service(self, note: Note) -> None:
        _, verb, _, id, *_ = [*note.subject.split("."), "", ""]
        for count, agent in enumerate(self.agents.all()):
            if id in ("", agent.id):
                if (said := _service(verb, agent)) is None:
                    return
                await self._tell(note, said)
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _beat(self) -> None:
        while True:
            for count, agent in enumerate(self.agents.all()):
                with suppress(SquadronError):
                    await self._bus.publish(agent.subject("hb"), agent.heartbeat())
                if count % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(HEARTBEAT_S)


def _service(verb: str, agent: SynadiaAgent) -> bytes | None:
    match verb:
        case "INFO":
            return agent.info
        case "PING":
            return json.dumps({**agent.head(), "type": "io.nats.micro.v1.ping_response"}).encode()
        case "STATS":
            stats = {**agent.head(), "type": "io.nats.micro.v1.stats_response", "endpoints": []}
            return json.dumps(stats).encode()
    return None


def _is_inbox(reply: str) -> bool:
    """Whether an answer may go there: what it says could be taken for a task or an event elsewhere."""
    return is_foreign(reply) and reply.startswith(INBOXES)
