"""A prompt is a task: stored before it is acknowledged, then chunks, questions and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import lru_cache

from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.kept_tasks import NAMES, KeptTask, KeptTasks, UnknownTaskError
from squadron.bridge.gateways.synadia.prompt_senders import PromptSenders
from squadron.bridge.gateways.synadia.prompt_wire import (
    Prompt,
    PromptError,
    chunk,
    refusal_of,
    responses,
    text_of,
)
from squadron.bridge.gateways.synadia.synadia_agents import SynadiaAgent
from squadron.bridge.gateways.visitors import Visitor, behalf_of
from squadron.runtime.asking.answering import OpenQuestion
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.asking.plain import plainly
from squadron.runtime.background import spawn
from squadron.runtime.errors import InvalidInputError
from squadron.runtime.ports.bus import Note
from squadron.runtime.streams.writer import Chunk, Ended, Restarted
from squadron.runtime.wire.outcome import Outcome
from squadron.runtime.wire.spoken import spoken_reply

#: How often a caller is told that its task goes on, in seconds: it gives up after 60 (§6).
KEEP_ALIVE_S = 25.0
#: How long the acknowledgement of a stored task may wait for its answer, in seconds: what leaves together costs
#: gateway and server one write, and callers one waking. Nobody notices it, and no answer is later for it.
TOGETHER_S = 0.05
#: Chunks of our own, which callers pass over that don't know them.
TASK, RESTARTED = "squadron/task", "squadron/restarted"
ACK = chunk("status", "ack")


class Prompts:
    """Serves prompts, each to its end."""

    def __init__(self, front: Front, senders: PromptSenders) -> None:
        self._front, self._bus, self._senders = front, front.place.ports.bus, senders
        self._kept = KeptTasks(front.place, front.secret, "synadia")
        #: By on whose behalf: to check them costs more than to send them.
        self._options = lru_cache(NAMES)(lambda behalf: AskOptions(within_s=front.within_s, on_behalf_of=behalf))

    async def serve(self, note: Note, agent: SynadiaAgent) -> None:
        """Answer one prompt.

        Raises:
            PromptError: it is refused.
            SquadronError: the task can't be stored or followed.
        """
        visitor = await self._senders.visitor(note)
        prompt = Prompt.decode(note.data)
        task = await self._task(prompt, agent, visitor)
        is_fresh = not prompt.task_id and not prompt.key
        outcome = await plainly(task.handle, TOGETHER_S) if is_fresh else None
        if outcome is not None:
            # Whoever hears the acknowledgement hears all of it: there is nothing to come back for.
            await self._tell(note, ACK)
            await self._tell_outcome(note, outcome)
        else:
            await self._serve_long(note, task, visitor, is_fresh=is_fresh)
        await self._tell(note, b"")

    async def _serve_long(self, note: Note, task: KeptTask, visitor: Visitor, *, is_fresh: bool) -> None:
        """Answer a prompt that takes a while, was sent before, or is refused."""
        if task.outcome is None or task.outcome.ok:
            await self._tell(note, ACK)
            await self._tell(note, chunk(TASK, {"taskId": task.id}))
        with self._meanwhile(note, task.id, visitor):
            await self._follow(note, task, is_fresh=is_fresh)

    @contextlib.contextmanager
    def _meanwhile(self, note: Note, task_id: str, visitor: Visitor) -> Iterator[None]:
        """Tell a caller that its task goes on, and what that asks; most tasks end before there is either to do."""
        helpers = dict[str, asyncio.Task[None]]()

        def keep_alive() -> None:
            helpers["alive"] = spawn(self._keep_alive(note), "tells a caller that its task goes on")

        def ask() -> None:
            if "asks" not in helpers:
                helpers["asks"] = spawn(self._ask(note, task_id, visitor), "asks a caller")

        later = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, keep_alive)
        leave = self._front.questions.watch(task_id, ask)
        try:
            yield
        finally:
            later.cancel()
            leave()
            for each in helpers.values():
                each.cancel()

    def _tell(self, note: Note, data: bytes, headers: Mapping[str, str] | None = None) -> Awaitable[None]:
        """One message of an answer, which the protocol never signs: its end is one without headers."""
        return self._bus.publish(note.reply, data, headers=headers, signed=False)

    async def _task(self, prompt: Prompt, agent: SynadiaAgent, visitor: Visitor) -> KeptTask:
        self._senders.check_may_ask(visitor, agent.topic)
        if prompt.task_id:
            try:
                found = await self._kept.find(visitor, prompt.task_id, agent.topic.name)
            except UnknownTaskError as error:
                raise PromptError(404, str(error.args[0])) from None
            if found.handle.topic != agent.topic.name:
                raise PromptError(404, f"there is no task {prompt.task_id!r}")
            return found
        content = prompt.content_for(agent.topic)
        options = self._options(behalf_of(visitor, self._front.place.ports.principal))
        if not prompt.key:
            return await self._kept.send(visitor, agent.topic.name, content, options)
        id = self._kept.id_for(visitor, prompt.key)
        return await self._kept.submit(visitor, agent.topic.name, content, options, id=id)

    async def _follow(self, note: Note, task: KeptTask, *, is_fresh: bool) -> None:
        told: list[str] = []
        outcome = task.outcome
        if outcome is None or outcome.ok:
            # It may have emitted something all the same: of a fresh one all of it is heard right here.
            outcome = await plainly(task.handle) if is_fresh else None
        if outcome is None:
            outcome = await self._chunks(note, task, told)
        await self._tell_outcome(note, outcome, told)

    async def _tell_outcome(self, note: Note, outcome: Outcome, told: Sequence[str] = ()) -> None:
        """Tell how a task ended, after what was `told` of it."""
        if not outcome.ok:
            headers, body = refusal_of(outcome)
            await self._tell(note, body, headers)
            return
        data = outcome.unwrap()
        if not told or text_of(data) != "".join(told):
            for each in responses(data):
                await self._tell(note, each)

    async def _chunks(self, note: Note, task: KeptTask, told: list[str]) -> Outcome:
        """Tell what a task emits, and note it in `told`, until its outcome is there."""
        async with aclosing(task.handle.events()) as events:
            async for event in events:
                match event:
                    case Chunk():
                        told.append(text_of(event.value))
                        for each in responses(event.value):
                            await self._tell(note, each)
                    case Restarted():
                        told.clear()
                        await self._tell(note, chunk(RESTARTED, {"attempt": event.attempt}))
                    case Ended():
                        break
        return task.outcome or await task.handle.outcome()

    async def _keep_alive(self, note: Note) -> None:
        while True:
            await self._tell(note, ACK)
            await asyncio.sleep(KEEP_ALIVE_S)

    async def _ask(self, note: Note, task_id: str, visitor: Visitor) -> None:
        """Put what the task asks to its caller, one question after the other."""
        answered = set[str]()
        while True:
            question = await self._front.questions.next_about(task_id, but=answered)
            answered.add(question.query_id)
            while not await self._asked(note, task_id, question, visitor):
                pass

    async def _asked(self, note: Note, task_id: str, asked: OpenQuestion, visitor: Visitor) -> bool:
        """Whether the answer to one question fits it."""
        inbox, answer = f"_INBOX.{os.urandom(16).hex()}", asyncio.get_running_loop().create_future()

        def hear(reply: Note) -> None:
            if not answer.done():
                answer.set_result(reply.data)

        heard = await self._bus.subscribe(inbox, hear)
        try:
            said = {"id": asked.query_id, "reply_subject": inbox, "prompt": asked.question.message}
            await self._tell(note, chunk("query", said))
            action, content = spoken_reply(asked.question, Prompt.decode(await answer).text)
            await self._front.questions.answer(task_id, asked.query_id, action, content, visitor)
        except (PromptError, InvalidInputError):
            return False
        finally:
            with contextlib.suppress(Exception):
                await heard.aclose()
        return True
