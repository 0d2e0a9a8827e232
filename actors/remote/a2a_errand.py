"""One task at an A2A agent elsewhere: sent, followed until it has ended, and answered when it asks.

What it is called there is noted before anything is waited for. An attempt after this one takes it up, instead of
sending it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import httpx
from a2a.client import Client
from a2a.client.errors import A2AClientError, A2AClientTimeoutError
from a2a.helpers.proto_helpers import get_data_parts, get_text_parts, new_data_part, new_text_part
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import A2AError, InvalidParamsError, TaskNotFoundError, UnsupportedOperationError
from google.protobuf.json_format import MessageToDict

from squadron.actors.operations import Operation
from squadron.actors.remote.a2a_agent import schemas_in
from squadron.actors.remote.errand_notes import ErrandNote
from squadron.runtime.background import spawn
from squadron.runtime.errors import InvalidInputError, ServerUnavailableError, Terminal
from squadron.runtime.running.context import TurnContext
from squadron.runtime.wire.a2a_names import ACTION, HOPS, QUESTION_SCHEMA, RESULT, TOPIC
from squadron.runtime.wire.doors_passed import hops_after
from squadron.runtime.wire.whole_numbers import exact, fitting

State = pb.TaskState
TERMINAL = frozenset(
    (State.TASK_STATE_COMPLETED, State.TASK_STATE_FAILED, State.TASK_STATE_CANCELED, State.TASK_STATE_REJECTED)
)
#: Connections that may break, one after the other, before the attempt is given up; and the pause before another.
MOST_BREAKS, AGAIN_S = 5, 1.0
#: How often an agent without streams is asked how far it is, in seconds: growing, up to the last.
POLL_S = (0.5, 1.0, 2.0, 5.0)
#: How long a cancel may take, in seconds.
CANCEL_WITHIN_S = 5.0
#: Longest text of a failure that is told.
MOST_WORDS = 2_000


class Errand:
    """A task there, for a task here.

    Args:
        client, card: of the agent.
        operation: the skill.
        ctx: of the turn here.
    """

    def __init__(self, client: Client, card: pb.AgentCard, operation: Operation, ctx: TurnContext) -> None:
        self._client, self._card, self._operation, self._ctx = client, card, operation, ctx
        self._noted = ErrandNote(ctx, "a2a")
        self._task_id = self._context_id = ""
        #: By id, in the order in which they came.
        self._artifacts: dict[str, list[pb.Part]] = {}
        #: How many of each one's parts were emitted here.
        self._emitted: dict[str, int] = {}
        self._answered = set[str]()

    async def run(self, content: dict[str, Any]) -> Any:
        """Have it done, and return what came of it as JSON data.

        Raises:
            Terminal: it did not come to a result.
            ServerUnavailableError: the agent went away.
        """
        if hops_after(self._ctx.budget) < 0:
            raise Terminal(f"{self._ctx.topic}: too often handed on; does an agent there lead back here?")
        if self._ctx.attempt > 1:
            await self._recall()
        status = await self._through(self._sent(content) if not self._task_id else self._again())
        while not isinstance(status, pb.Message) and status.state not in TERMINAL:
            if status.state == State.TASK_STATE_AUTH_REQUIRED:
                self._fail(status, "wants to be authorized there")
            status = await self._through(self._send(await self._answer(status)))
        if isinstance(status, pb.Message):
            return self._value(list(status.parts))
        if status.state != State.TASK_STATE_COMPLETED:
            self._fail(status, State.Name(status.state).removeprefix("TASK_STATE_").lower())
        return self._result(status)

    async def cancel(self) -> None:
        """Have the task stopped there, as far as that can be."""
        if self._task_id:
            with contextlib.suppress(A2AError, httpx.HTTPError, TimeoutError, OSError):
                async with asyncio.timeout(CANCEL_WITHIN_S):
                    await self._client.cancel_task(pb.CancelTaskRequest(id=self._task_id))

    # --- following ------------------------------------------------------------------------------------

    async def _through(self, events: AsyncIterator[pb.StreamResponse]) -> pb.TaskStatus | pb.Message:
        """What a task comes to, or asks; goes on over connections that break."""
        breaks = 0
        while True:
            try:
                async with contextlib.aclosing(events):  # type: ignore[type-var]
                    while (event := await self._next(events)) is not None:
                        breaks = 0
                        if (ended := await self._heard(event)) is not None:
                            return ended
                why = "ended a stream before the task"
            except (A2AClientTimeoutError, httpx.TransportError, OSError) as error:
                why = f"went away: {type(error).__name__}"
            except UnsupportedOperationError:
                # Of a task that has ended there is nothing to be followed.
                why = ""
            except A2AClientError as error:
                if not _is_passing(error):
                    raise Terminal(f"{self._operation.name}: {error}"[:MOST_WORDS]) from None
                why = str(error)[:300]
            except A2AError as error:
                raise Terminal(f"{self._operation.name}: {error}"[:MOST_WORDS]) from None
            breaks += 1
            if not self._task_id or breaks > MOST_BREAKS:
                raise ServerUnavailableError(f"{self._ctx.agent} {why}")
            await asyncio.sleep(AGAIN_S if why else 0)
            events = self._polled() if not why else self._again()

    async def _next(self, events: AsyncIterator[pb.StreamResponse]) -> pb.StreamResponse | None:
        """What comes next; None at the end. Who is cancelled too soon waits to know what is to stop there."""
        step = spawn(anext(events, None), "news of an A2A task")
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            if self._ctx.cancelled and not self._task_id:
                await asyncio.wait({step}, timeout=CANCEL_WITHIN_S)
                if step.done() and step.exception() is None and (event := step.result()) is not None:
                    self._task_id = event.task.id
            step.cancel()
            # What runs can't be closed.
            await asyncio.wait({step}, timeout=CANCEL_WITHIN_S)
            raise

    async def _heard(self, event: pb.StreamResponse) -> pb.TaskStatus | pb.Message | None:
        kind = event.WhichOneof("payload")
        if kind == "message":
            return event.message
        if kind == "artifact_update":
            await self._take(event.artifact_update)
            return None
        if kind == "task":
            await self._note(event.task.id, event.task.context_id)
            self._artifacts = {each.artifact_id: list(each.parts) for each in event.task.artifacts}
            status = event.task.status
            if status.state not in TERMINAL:
                for each in event.task.artifacts:
                    await self._emit(each.artifact_id)
        else:
            status = event.status_update.status
        is_asked = status.state in (State.TASK_STATE_INPUT_REQUIRED, State.TASK_STATE_AUTH_REQUIRED)
        if is_asked and status.message.message_id in self._answered:
            return None
        return status if status.state in TERMINAL or is_asked else None

    async def _take(self, update: pb.TaskArtifactUpdateEvent) -> None:
        parts = list(update.artifact.parts)
        id = update.artifact.artifact_id
        if update.append:
            self._artifacts.setdefault(id, []).extend(parts)
        else:
            self._artifacts[id], self._emitted[id] = parts, 0
        await self._emit(id)

    async def _emit(self, artifact: str) -> None:
        """Tell of what an artifact has grown by."""
        parts = self._artifacts[artifact]
        if artifact != RESULT:
            for part in parts[self._emitted.get(artifact, 0) :]:
                await self._ctx.emit(self._value([part]))
            self._emitted[artifact] = len(parts)

    async def _sent(self, content: dict[str, Any]) -> AsyncIterator[pb.StreamResponse]:
        # The same task here is the same message there, for agents that know a message again.
        message = self._message(self._ctx.message.id, self._parts(content))
        async for event in self._send(message):
            yield event

    async def _send(self, message: pb.Message) -> AsyncIterator[pb.StreamResponse]:
        request = pb.SendMessageRequest(message=message)
        is_streaming = self._card.capabilities.streaming
        # A client that waits for an answer in one piece can't tell a slow agent from a dead one.
        request.configuration.return_immediately = not is_streaming
        async for event in self._client.send_message(request):
            yield event
        if not is_streaming and self._task_id:
            async for event in self._polled():
                yield event

    async def _again(self) -> AsyncIterator[pb.StreamResponse]:
        if not self._card.capabilities.streaming:
            async for event in self._polled():
                yield event
            return
        async for event in self._client.subscribe(pb.SubscribeToTaskRequest(id=self._task_id)):
            yield event

    async def _polled(self) -> AsyncIterator[pb.StreamResponse]:
        waits = iter(POLL_S)
        while True:
            yield pb.StreamResponse(task=await self._client.get_task(pb.GetTaskRequest(id=self._task_id)))
            await asyncio.sleep(next(waits, POLL_S[-1]))

    # --- questions ------------------------------------------------------------------------------------

    async def _answer(self, status: pb.TaskStatus) -> pb.Message:
        """Have people answer what the agent asks."""
        asked = status.message
        self._answered.add(asked.message_id)
        words = "\n".join(get_text_parts(asked.parts)) or f"{self._operation.name} needs to know more."
        schema = _schema_of(asked)
        options: dict[str, Any] = {} if schema is None else {"schema": schema}
        try:
            reply = await self._ctx.ask_person(f"{self._ctx.agent} asks: {words}", **options)
        except InvalidInputError:
            # Its schema is none that a form can show.
            schema = None
            reply = await self._ctx.ask_person(f"{self._ctx.agent} asks: {words}")
        content = dict(reply.content)
        if schema is None and reply.accepted:
            parts = [new_text_part(str(reply.value), media_type="text/plain")]
        else:
            parts = [new_data_part(fitting(content), media_type="application/json")]
        message = self._message(uuid.uuid4().hex, parts)
        message.task_id = self._task_id
        if not reply.accepted:
            message.metadata.update({ACTION: reply.action})
        return message

    # --- messages -------------------------------------------------------------------------------------

    def _message(self, message_id: str, parts: list[pb.Part]) -> pb.Message:
        message = pb.Message(message_id=message_id, role=pb.Role.ROLE_USER, parts=parts)
        message.context_id = self._context_id
        message.metadata.update({TOPIC: self._operation.name, HOPS: hops_after(self._ctx.budget)})
        return message

    def _parts(self, content: dict[str, Any]) -> list[pb.Part]:
        if schemas_in(self._card, self._operation.name):
            return [new_data_part(fitting(content), media_type="application/json")]
        parts = []
        if "text" in content:
            parts.append(new_text_part(str(content["text"]), media_type="text/plain"))
        if "data" in content:
            parts.append(new_data_part(fitting(content["data"]), media_type="application/json"))
        return parts

    def _result(self, status: pb.TaskStatus) -> Any:
        """What it came to: the artifact that we call so, else all of them, else what it says at the end."""
        if RESULT in self._artifacts:
            return self._value(self._artifacts[RESULT])
        parts = [part for each in self._artifacts.values() for part in each]
        return self._value(parts or list(status.message.parts))

    def _value(self, parts: list[pb.Part]) -> Any:
        """Parts as data: the only data, the texts as one, else the parts as A2A has them."""
        data, texts = get_data_parts(parts), get_text_parts(parts)
        if len(data) == 1 and len(parts) == 1:
            return exact(data[0], self._operation.topic.output_schema)
        if len(texts) == len(parts):
            return "".join(texts) if self._is_one_text() else "\n".join(texts)
        return {"parts": [MessageToDict(each) for each in parts]}

    def _is_one_text(self) -> bool:
        # What came by pieces (`append`) belongs together as it is.
        return len(self._artifacts) == 1

    def _fail(self, status: pb.TaskStatus, what: str) -> NoReturn:
        said = " ".join(get_text_parts(status.message.parts))
        raise Terminal(f"{self._operation.name} {what}{f': {said}' if said else ''}"[:MOST_WORDS])

    # --- over attempts --------------------------------------------------------------------------------

    async def _note(self, task_id: str, context_id: str) -> None:
        if task_id == self._task_id:
            return
        self._task_id, self._context_id = task_id, context_id
        await self._noted.write({"task": task_id, "context": context_id})

    async def _recall(self) -> None:
        said = await self._noted.read()
        if not (task_id := said.get("task")):
            return
        # It forgot the task, or somebody else wrote the note.
        with contextlib.suppress(TaskNotFoundError, InvalidParamsError):
            await self._client.get_task(pb.GetTaskRequest(id=task_id))
            self._task_id, self._context_id = task_id, said.get("context", "")


def _schema_of(asked: pb.Message) -> dict[str, Any] | None:
    if QUESTION_SCHEMA not in asked.metadata:
        return None
    said = MessageToDict(asked.metadata).get(QUESTION_SCHEMA)
    return said if isinstance(said, dict) and said.get("properties") is not None else None


def _is_passing(error: A2AClientError) -> bool:
    """Whether the same may go well a moment later: the network, or a status of 429 or 500 and above."""
    status = getattr(error, "status_code", None)
    cause = error.__cause__
    if isinstance(cause, httpx.HTTPStatusError):
        status = cause.response.status_code
    if isinstance(cause, httpx.TransportError):
        return True
    return isinstance(status, int) and (status == 429 or status >= 500)
