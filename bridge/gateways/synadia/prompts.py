"""A prompt is a task: stored before it is acknowledged, then chunks, questions and its end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
from contextlib import aclosing
from typing import Any

from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.kept_tasks import KeptTask, KeptTasks, UnknownTaskError
from squadron.bridge.gateways.synadia.prompt_wire import (
    Prompt,
    PromptError,
    chunk,
    refusal_of,
    responses,
    text_of,
)
from squadron.bridge.gateways.synadia.synadia_agents import SynadiaAgent
from squadron.bridge.gateways.visitors import ANYBODY
from squadron.runtime.asking.answering import OpenQuestion
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.background import spawn
from squadron.runtime.errors import InvalidInputError, UntrustedError
from squadron.runtime.ports.bus import Note
from squadron.runtime.streams.writer import Chunk, Ended, Restarted
from squadron.runtime.trust.agent_sender import SENDER_HEADER, AgentSender
from squadron.runtime.trust.keys import is_signed_by
from squadron.runtime.trust.nonces import Nonces
from squadron.runtime.trust.signature_check import LIVE_WITHIN_S
from squadron.runtime.wire.question import Action, Question

#: How often a caller is told that its task goes on, in seconds: it gives up after 60 (§6).
KEEP_ALIVE_S = 25.0
#: Chunks of our own, which callers pass over that don't know them.
TASK, RESTARTED = "squadron/task", "squadron/restarted"
ACK = chunk("status", "ack")


class Prompts:
    """Serves prompts, each to its end."""

    def __init__(self, front: Front) -> None:
        self._front, self._bus = front, front.place.ports.bus
        self._kept = KeptTasks(front.place, front.secret, "synadia")
        self._nonces = Nonces(2 * LIVE_WITHIN_S, time.time)

    async def serve(self, note: Note, agent: SynadiaAgent) -> None:
        """Answer one prompt.

        Raises:
            PromptError: it is refused.
            SquadronError: the task can't be stored or followed.
        """
        self._check_sender(note)
        prompt = Prompt.decode(note.data)
        task = await self._task(prompt, agent)
        if task.outcome is None or task.outcome.ok:
            await self._bus.publish(note.reply, ACK)
            await self._bus.publish(note.reply, chunk(TASK, {"taskId": task.id}))
        helpers = [
            spawn(self._keep_alive(note), "tells a caller that its task goes on"),
            spawn(self._ask(note, task.id), "asks a caller"),
        ]
        try:
            await self._follow(note, task)
        finally:
            for each in helpers:
                each.cancel()
        await self._bus.publish(note.reply, b"")

    def _check_sender(self, note: Note) -> None:
        """Refuse a signature that is wrong; who signs nothing is let in as anybody is."""
        value = note.headers.get(SENDER_HEADER)
        if value is None:
            return
        try:
            sender = AgentSender.parse(value)
        except UntrustedError as error:
            raise PromptError(400, str(error.args[0])) from None
        if sender is None:
            return
        digest = hashlib.sha256(note.data).hexdigest()
        if sender.subject != note.subject or abs(time.time() - sender.at) > LIVE_WITHIN_S:
            raise PromptError(401, "it is signed for another subject, or another time")
        if not is_signed_by(sender.user, sender.signed(digest), sender.signature):
            raise PromptError(401, "it is not as it was signed")
        if self._nonces.is_again(sender.user, sender.nonce, 0):
            raise PromptError(401, "it was heard before")
        self._nonces.take(sender.user, sender.nonce, 0)

    async def _task(self, prompt: Prompt, agent: SynadiaAgent) -> KeptTask:
        if prompt.task_id:
            try:
                found = await self._kept.find(ANYBODY, prompt.task_id)
            except UnknownTaskError as error:
                raise PromptError(404, str(error.args[0])) from None
            if found.handle.topic != agent.topic.name:
                raise PromptError(404, f"there is no task {prompt.task_id!r}")
            return found
        options = AskOptions(within_s=self._front.within_s)
        id = self._kept.id_for(ANYBODY, prompt.key) if prompt.key else ""
        return await self._kept.submit(ANYBODY, agent.topic.name, prompt.content_for(agent.topic), options, id=id)

    async def _follow(self, note: Note, task: KeptTask) -> None:
        told: list[str] = []
        async with aclosing(task.handle.events()) as events:
            async for event in events:
                match event:
                    case Chunk():
                        told.append(text_of(event.value))
                        for each in responses(event.value):
                            await self._bus.publish(note.reply, each)
                    case Restarted():
                        told.clear()
                        await self._bus.publish(note.reply, chunk(RESTARTED, {"attempt": event.attempt}))
                    case Ended():
                        break
        outcome = await task.handle.outcome()
        if not outcome.ok:
            headers, body = refusal_of(outcome)
            await self._bus.publish(note.reply, body, headers=headers)
            return
        data = outcome.unwrap()
        if not told or text_of(data) != "".join(told):
            for each in responses(data):
                await self._bus.publish(note.reply, each)

    async def _keep_alive(self, note: Note) -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_S)
            await self._bus.publish(note.reply, ACK)

    async def _ask(self, note: Note, task_id: str) -> None:
        """Put what the task asks to its caller, one question after the other."""
        answered = set[str]()
        while True:
            question = await self._front.questions.next_about(task_id, but=answered)
            answered.add(question.query_id)
            while not await self._asked(note, task_id, question):
                pass

    async def _asked(self, note: Note, task_id: str, asked: OpenQuestion) -> bool:
        """Whether the answer to one question fits it."""
        inbox, answer = f"_INBOX.{os.urandom(16).hex()}", asyncio.get_running_loop().create_future()

        def hear(reply: Note) -> None:
            if not answer.done():
                answer.set_result(reply.data)

        heard = await self._bus.subscribe(inbox, hear)
        try:
            said = {"id": asked.query_id, "reply_subject": inbox, "prompt": asked.question.message}
            await self._bus.publish(note.reply, chunk("query", said))
            action, content = _reply(asked.question, Prompt.decode(await answer).text)
            await self._front.questions.answer(task_id, asked.query_id, action, content, ANYBODY)
        except (PromptError, InvalidInputError):
            return False
        finally:
            with contextlib.suppress(Exception):
                await heard.aclose()
        return True


def _reply(question: Question, text: str) -> tuple[Action, dict[str, Any]]:
    """What a text answers: of an approval yes or no, else JSON with the fields, or the only field.

    Raises:
        InvalidInputError: it answers nothing.
    """
    if question.kind == "approval":
        said = text.strip().lower()
        if said not in ("yes", "no"):
            raise InvalidInputError(f"{said[:40]!r} is neither yes nor no", field="content")
        return ("accept" if said == "yes" else "decline"), {}
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return "accept", question.fields(value if isinstance(value, dict) else text)
