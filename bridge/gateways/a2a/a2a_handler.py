"""Requests of A2A clients, over lite topics: no state of a task is in this process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, NoReturn

from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.request_handler import RequestHandler, validate_request_params
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import (
    ExtendedAgentCardNotConfiguredError,
    InvalidParamsError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from squadron.bridge.gateways.a2a.a2a_card import served
from squadron.bridge.gateways.a2a.a2a_parts import answer_of, content_of
from squadron.bridge.gateways.a2a.a2a_tasks import (
    TERMINAL,
    TOPIC,
    about_of,
    chunk_update,
    result_artifact,
    status_of,
    task_of,
)
from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.kept_tasks import KeptTask, KeptTasks, UnknownTaskError
from squadron.bridge.gateways.visitors import Visitor
from squadron.runtime.asking.answering import OpenQuestion
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.background import spawn
from squadron.runtime.errors import InvalidInputError, UnknownQuestionError
from squadron.runtime.streams.writer import Chunk, Ended, Restarted
from squadron.runtime.wire.envelope import MAX_NAME
from squadron.runtime.wire.outcome import Cancelled, Outcome, Result
from squadron.runtime.wire.topics import SemanticTopic

#: Tasks on a page of the list, by default and at most (A2A 1.0).
PAGE, MOST_ON_PAGE = 50, 100

Update = pb.Task | pb.TaskStatusUpdateEvent | pb.TaskArtifactUpdateEvent


class A2aHandler(RequestHandler):
    """Serves what the SDK has read from a request; it answers what is raised as the protocol wants."""

    def __init__(self, front: Front) -> None:
        self._front, self._kept = front, KeptTasks(front.place, front.secret, "a2a")

    # --- messages ------------------------------------------------------------------------------------

    @validate_request_params
    async def on_message_send(
        self, params: pb.SendMessageRequest, context: ServerCallContext
    ) -> pb.Task | pb.Message:
        """Put a task, or answer what one asks; and wait until it ends or asks, unless told not to."""
        task, answered = await self._taken(params, context)
        question = None
        if task.outcome is None and not params.configuration.return_immediately:
            task, question = await self._settled(task, answered)
        return task_of(task, question, with_history=_wants_history(params.configuration))

    @validate_request_params
    async def on_message_send_stream(
        self, params: pb.SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Any, None]:
        """As `on_message_send`, and tell what happens meanwhile."""
        task, answered = await self._taken(params, context)
        async for update in self._told(task, answered):
            yield update

    @validate_request_params
    async def on_subscribe_to_task(
        self, params: pb.SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Any, None]:
        """Tell what happens with a task that goes on, from its start."""
        task = await self._find(params.id, context)
        if task.outcome is not None:
            raise UnsupportedOperationError("the task has ended: get it")
        async for update in self._told(task, set()):
            yield update

    async def _taken(self, params: pb.SendMessageRequest, context: ServerCallContext) -> tuple[KeptTask, set[str]]:
        """The task of a message, and which of its questions are answered by that."""
        if params.message.task_id:
            return await self._answered(params.message, context)
        visitor, agent = _visitor_of(context), _agent_of(context)
        topic = self._topic(agent, params)
        message = params.message
        content = content_of(message, topic)
        context_id = message.context_id or uuid.uuid4().hex
        if len(context_id) > MAX_NAME or len(message.message_id) > MAX_NAME:
            raise InvalidParamsError(f"an id has at most {MAX_NAME} characters")
        task = await self._kept.submit(
            visitor,
            topic.name,
            content,
            AskOptions(within_s=self._front.within_s, conversation_id=context_id),
            # Who sends a message again, its gateway having died, means the same task.
            id=self._kept.id_for(
                visitor, f"{agent} {context_id if message.context_id else ''} {message.message_id}"
            ),
            about=about_of(agent, context_id, message),
        )
        return task, set()

    def _topic(self, agent: str, params: pb.SendMessageRequest) -> SemanticTopic:
        topics = {each.name: each for each in served(self._front).get(agent, ())}
        named = {str(each[TOPIC]) for each in (params.metadata, params.message.metadata) if TOPIC in each}
        if len(named) > 1 or named - topics.keys():
            raise InvalidParamsError(f"{agent} has no skill {', '.join(sorted(named))[:200]!r}")
        if not named and len(topics) == 1:
            return next(iter(topics.values()))
        if not named:
            names = ", ".join(topics) or "none"
            raise InvalidParamsError(f'say which skill in metadata["{TOPIC}"]: {names}')
        return topics[named.pop()]

    async def _answered(self, message: pb.Message, context: ServerCallContext) -> tuple[KeptTask, set[str]]:
        task = await self._find(message.task_id, context)
        if message.context_id not in ("", task.about["contextId"]):
            raise InvalidParamsError("the task is of another context")
        if task.outcome is not None:
            raise UnsupportedOperationError("the task has ended: send a new message")
        questions = await self._front.questions.about(task.id)
        if not questions:
            raise UnsupportedOperationError("the task does not wait for an answer")
        asked = questions[0]
        content = answer_of(message, dict(asked.question.schema))
        try:
            await self._front.questions.answer(task.id, asked.query_id, "accept", content, _visitor_of(context))
        except (InvalidInputError, UnknownQuestionError) as error:
            raise InvalidParamsError(str(error)) from None
        return task, {asked.query_id}

    # --- what becomes of a task ----------------------------------------------------------------------

    async def _settled(self, task: KeptTask, answered: set[str]) -> tuple[KeptTask, OpenQuestion | None]:
        """Wait until a task ends, or asks something; whoever stops waiting does not stop it."""
        ended = spawn(task.handle.outcome(), "a task's end")
        asks = spawn(self._front.questions.next_about(task.id, but=answered), "a task's question")
        try:
            await asyncio.wait({ended, asks}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return self._with(task, ended.result()), None
            return task, asks.result()
        finally:
            ended.cancel()
            asks.cancel()

    async def _told(self, task: KeptTask, answered: set[str]) -> AsyncGenerator[Update, None]:
        """The task, its chunks, and what it came to or asks."""
        yield task_of(task, with_history=False)
        if task.outcome is not None:
            return
        context_id, first = str(task.about["contextId"]), True
        asks = spawn(self._front.questions.next_about(task.id, but=answered), "a task's question")
        try:
            async with task.handle.events() as events:
                while True:
                    event = await self._next(events, asks)
                    if isinstance(event, OpenQuestion):
                        status = status_of(task, event)
                        yield pb.TaskStatusUpdateEvent(task_id=task.id, context_id=context_id, status=status)
                        return
                    if isinstance(event, Ended):
                        break
                    if isinstance(event, Chunk):
                        yield chunk_update(task, event, first=first)
                        first = False
                    first = first or isinstance(event, Restarted)
        finally:
            asks.cancel()
        task = self._with(task, event.outcome)
        if isinstance(event.outcome, Result):
            artifact = result_artifact(event.outcome)
            yield pb.TaskArtifactUpdateEvent(
                task_id=task.id, context_id=context_id, artifact=artifact, last_chunk=True
            )
        yield pb.TaskStatusUpdateEvent(task_id=task.id, context_id=context_id, status=status_of(task))

    @staticmethod
    async def _next(events: Any, asks: asyncio.Task[OpenQuestion]) -> Any:
        """What comes first: a chunk, the end, or a question."""
        event = spawn(anext(events), "what comes of a task")
        try:
            await asyncio.wait({event, asks}, return_when=asyncio.FIRST_COMPLETED)
            return event.result() if event.done() else asks.result()
        finally:
            # It is there for the next who asks for one.
            event.cancel()

    def _with(self, task: KeptTask, outcome: Outcome) -> KeptTask:
        return replace(task, outcome=outcome, news_at=self._front.place.ports.clock.time())

    # --- tasks ---------------------------------------------------------------------------------------

    async def _find(self, task_id: str, context: ServerCallContext) -> KeptTask:
        try:
            task = await self._kept.find(_visitor_of(context), task_id)
        except UnknownTaskError as error:
            raise TaskNotFoundError(str(error)) from None
        if task.about.get("agent") != _agent_of(context):
            raise TaskNotFoundError(f"there is no task {task_id[:100]!r}")
        return task

    @validate_request_params
    async def on_get_task(self, params: pb.GetTaskRequest, context: ServerCallContext) -> pb.Task | None:
        """A task as it is now."""
        task = await self._find(params.id, context)
        return task_of(task, await self._question(task), with_history=_wants_history(params))

    async def _question(self, task: KeptTask) -> OpenQuestion | None:
        if task.outcome is not None:
            return None
        return next(iter(await self._front.questions.about(task.id)), None)

    @validate_request_params
    async def on_list_tasks(self, params: pb.ListTasksRequest, context: ServerCallContext) -> pb.ListTasksResponse:
        """The tasks of this visitor's with this agent, those with the latest news first."""
        size = params.page_size or PAGE
        if not 1 <= size <= MOST_ON_PAGE:
            raise InvalidParamsError(f"a page has 1 to {MOST_ON_PAGE} tasks")
        if params.page_token and not (params.page_token.isascii() and params.page_token.isdigit()):
            raise InvalidParamsError("that is no token of a page")
        agent, found = _agent_of(context), []
        for each in await self._kept.listed(_visitor_of(context)):
            if each.about.get("agent") != agent or params.context_id not in ("", each.about["contextId"]):
                continue
            made = task_of(each, await self._question(each), with_history=_wants_history(params))
            if params.status and made.status.state != params.status:
                continue
            if params.HasField("status_timestamp_after") and (
                made.status.timestamp.ToNanoseconds() < params.status_timestamp_after.ToNanoseconds()
            ):
                continue
            if not params.include_artifacts:
                del made.artifacts[:]
            found.append(made)
        found.sort(key=lambda task: -task.status.timestamp.ToNanoseconds())
        start = int(params.page_token or 0)
        more = start + size < len(found)
        return pb.ListTasksResponse(
            tasks=found[start : start + size],
            next_page_token=str(start + size) if more else "",
            page_size=size,
            total_size=len(found),
        )

    @validate_request_params
    async def on_cancel_task(self, params: pb.CancelTaskRequest, context: ServerCallContext) -> pb.Task | None:
        """Have a task stopped."""
        task = await self._find(params.id, context)
        if task.outcome is None:
            task = self._with(task, await task.handle.cancel())
        if not isinstance(task.outcome, Cancelled):
            raise TaskNotCancelableError("the task has ended otherwise")
        assert task_of(task).status.state in TERMINAL
        return task_of(task)

    # --- what there is not ---------------------------------------------------------------------------

    async def on_create_task_push_notification_config(self, params: Any, context: ServerCallContext) -> NoReturn:
        """Nobody is called back."""
        raise PushNotificationNotSupportedError

    async def on_get_task_push_notification_config(self, params: Any, context: ServerCallContext) -> NoReturn:
        """Nobody is called back."""
        raise PushNotificationNotSupportedError

    async def on_list_task_push_notification_configs(self, params: Any, context: ServerCallContext) -> NoReturn:
        """Nobody is called back."""
        raise PushNotificationNotSupportedError

    async def on_delete_task_push_notification_config(self, params: Any, context: ServerCallContext) -> NoReturn:
        """Nobody is called back."""
        raise PushNotificationNotSupportedError

    async def on_get_extended_agent_card(self, params: Any, context: ServerCallContext) -> NoReturn:
        """All there is to know stands in the card."""
        raise ExtendedAgentCardNotConfiguredError


def _visitor_of(context: ServerCallContext) -> Visitor:
    visitor: Visitor = context.state["visitor"]
    return visitor


def _agent_of(context: ServerCallContext) -> str:
    return str(context.state["agent"])


def _wants_history(params: Any) -> bool:
    return not (params.HasField("history_length") and params.history_length == 0)
