"""Requests of A2A clients, over lite topics: no state of a task is in this process."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Any, NoReturn

from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.request_handler import RequestHandler, validate_request_params
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import (
    ExtendedAgentCardNotConfiguredError,
    InvalidParamsError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from squadron.bridge.gateways.a2a.a2a_card import served
from squadron.bridge.gateways.a2a.a2a_following import Following
from squadron.bridge.gateways.a2a.a2a_parts import answer_of, content_of
from squadron.bridge.gateways.a2a.a2a_tasks import about_of, message_of, task_of
from squadron.bridge.gateways.a2a.contract_net import ContractNet
from squadron.bridge.gateways.a2a.push_configs import PushConfigs
from squadron.bridge.gateways.a2a.push_sender import PushSender
from squadron.bridge.gateways.a2a.push_targets import PushTargets
from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.kept_tasks import KeptTask, KeptTasks, UnknownTaskError
from squadron.bridge.gateways.visitors import Visitor
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import InvalidInputError, UnknownQuestionError
from squadron.runtime.wire.a2a_names import HOPS, TOPIC
from squadron.runtime.wire.doors_passed import budget_of_hops
from squadron.runtime.wire.envelope import MAX_NAME
from squadron.runtime.wire.limits import UNLIMITED, Budget
from squadron.runtime.wire.outcome import Cancelled
from squadron.runtime.wire.topics import SemanticTopic

#: Tasks on a page of the list, by default and at most (A2A 1.0).
PAGE, MOST_ON_PAGE = 50, 100

#: Where a task stands in the list: the latest news first, then by its id.
_Order = tuple[int, str]
#: More than nanoseconds since the epoch have.
_MOST_DIGITS = 25


class A2aHandler(RequestHandler):
    """Serves what the SDK has read from a request; it answers what is raised as the protocol wants."""

    def __init__(self, front: Front) -> None:
        self._front, self._kept = front, KeptTasks(front.place, front.secret, "a2a")
        self._following, self._contract_net = Following(front), ContractNet(front)
        self._targets = PushTargets(front.push_to)
        self._pushes = PushConfigs(front, self._targets)

    def sending(self) -> AbstractAsyncContextManager[None]:
        """Send news of tasks as long as this is entered."""
        return PushSender(self._front, self._kept, self._targets).running()

    # --- messages ------------------------------------------------------------------------------------

    @validate_request_params
    async def on_message_send(
        self, params: pb.SendMessageRequest, context: ServerCallContext
    ) -> pb.Task | pb.Message:
        """Put a task, or answer what one asks; and wait until it ends or asks, unless told not to."""
        if self._contract_net.is_act(params.message):
            return await self._negotiated(params, context)
        task, answered = await self._taken(params, context)
        question = None
        if params.configuration.return_immediately:
            self._following.leave(task)
        else:
            task, question = await self._following.settled(task, answered)
        if (said := message_of(task)) is not None:
            return said
        with_history = _wants_history(params.configuration)
        return await self._following.shown(task, question, with_history=with_history)

    @validate_request_params
    async def on_message_send_stream(
        self, params: pb.SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Any, None]:
        """As `on_message_send`, and tell what happens meanwhile."""
        if self._contract_net.is_act(params.message):
            yield await self._negotiated(params, context)
            return
        task, answered = await self._taken(params, context)
        async for update in self._following.updates(task, answered):
            yield update

    @validate_request_params
    async def on_subscribe_to_task(
        self, params: pb.SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Any, None]:
        """Tell what happens with a task that goes on, from its start."""
        task = await self._find(params.id, context)
        if task.outcome is not None:
            raise UnsupportedOperationError("the task has ended: get it")
        async for update in self._following.updates(task, set()):
            yield update

    async def _negotiated(self, params: pb.SendMessageRequest, context: ServerCallContext) -> pb.Message:
        topic = self._topic(_agent_of(context), params)
        return await self._contract_net.answer(params.message, topic, _visitor_of(context))

    async def _taken(self, params: pb.SendMessageRequest, context: ServerCallContext) -> tuple[KeptTask, set[str]]:
        """The task of a message, and which of its questions that answers; who wants to be told is noted."""
        if not params.configuration.HasField("task_push_notification_config"):
            return await self._put(params, context)
        # Before a task is there that nobody would be told of.
        wanted = await self._pushes.checked(params.configuration.task_push_notification_config)
        task, answered = await self._put(params, context)
        await self._pushes.add(task, wanted)
        return task, answered

    async def _put(self, params: pb.SendMessageRequest, context: ServerCallContext) -> tuple[KeptTask, set[str]]:
        if params.message.task_id:
            return await self._answered(params.message, context)
        visitor, agent = _visitor_of(context), _agent_of(context)
        topic = self._topic(agent, params)
        message = params.message
        content = content_of(message, topic)
        accepted = self._contract_net.accepted(message, topic, visitor, _hops_of(message))
        context_id = message.context_id or uuid.uuid4().hex
        if len(context_id) > MAX_NAME or len(message.message_id) > MAX_NAME:
            raise InvalidParamsError(f"an id has at most {MAX_NAME} characters")
        task = await self._kept.submit(
            visitor,
            topic.name,
            content,
            AskOptions.of({"within_s": self._front.within_s, "conversation_id": context_id, **accepted}),
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
        action, content = answer_of(message, asked.question)
        try:
            await self._front.questions.answer(task.id, asked.query_id, action, content, _visitor_of(context))
        except (InvalidInputError, UnknownQuestionError) as error:
            raise InvalidParamsError(str(error)) from None
        return task, {asked.query_id}

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
        question = await self._following.question(task)
        return await self._following.shown(task, question, with_history=_wants_history(params))

    @validate_request_params
    async def on_list_tasks(self, params: pb.ListTasksRequest, context: ServerCallContext) -> pb.ListTasksResponse:
        """The tasks of this visitor's with this agent, those with the latest news first."""
        size = params.page_size or PAGE
        if not 1 <= size <= MOST_ON_PAGE:
            raise InvalidParamsError(f"a page has 1 to {MOST_ON_PAGE} tasks")
        after, with_history = _place_on(params.page_token), _wants_history(params)
        found = []
        for task in await self._kept.listed(_visitor_of(context)):
            if task.about.get("agent") != _agent_of(context):
                continue
            question = await self._following.question(task)
            made = task_of(task, question, with_history=with_history)
            if _is_wanted(made, params):
                found.append((_order_of(made), task, question, made))
        found.sort(key=lambda each: each[0])
        rest = [each for each in found if after is None or each[0] > after]
        page = []
        for _, task, question, made in rest[:size]:
            if params.include_artifacts:
                page.append(await self._following.shown(task, question, with_history=with_history))
            else:
                del made.artifacts[:]
                page.append(made)
        return pb.ListTasksResponse(
            tasks=page,
            next_page_token=_token_of(rest[size - 1][0]) if len(rest) > size else "",
            page_size=size,
            total_size=len(found),
        )

    @validate_request_params
    async def on_cancel_task(self, params: pb.CancelTaskRequest, context: ServerCallContext) -> pb.Task | None:
        """Have a task stopped."""
        task = await self._find(params.id, context)
        if task.outcome is None:
            task = self._following.ended(task, await task.handle.cancel())
        if not isinstance(task.outcome, Cancelled):
            raise TaskNotCancelableError("the task has ended otherwise")
        return await self._following.shown(task)

    # --- who is told -----------------------------------------------------------------------------------

    @validate_request_params
    async def on_create_task_push_notification_config(
        self, params: pb.TaskPushNotificationConfig, context: ServerCallContext
    ) -> pb.TaskPushNotificationConfig:
        """Have a URL told what becomes of a task."""
        return await self._pushes.add(await self._find(params.task_id, context), params)

    @validate_request_params
    async def on_get_task_push_notification_config(
        self, params: pb.GetTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> pb.TaskPushNotificationConfig:
        """Who is told under an id, without credentials."""
        return await self._pushes.get(await self._find(params.task_id, context), params.id)

    @validate_request_params
    async def on_list_task_push_notification_configs(
        self, params: pb.ListTaskPushNotificationConfigsRequest, context: ServerCallContext
    ) -> pb.ListTaskPushNotificationConfigsResponse:
        """All who are told, which are few: there is one page."""
        configs = await self._pushes.all(await self._find(params.task_id, context))
        return pb.ListTaskPushNotificationConfigsResponse(configs=configs)

    @validate_request_params
    async def on_delete_task_push_notification_config(
        self, params: pb.DeleteTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> None:
        """Have somebody told no more."""
        await self._pushes.remove(await self._find(params.task_id, context), params.id)

    async def on_get_extended_agent_card(self, params: Any, context: ServerCallContext) -> NoReturn:
        """All there is to know stands in the card."""
        raise ExtendedAgentCardNotConfiguredError


def _visitor_of(context: ServerCallContext) -> Visitor:
    visitor: Visitor = context.state["visitor"]
    return visitor


def _agent_of(context: ServerCallContext) -> str:
    return str(context.state["agent"])


def _hops_of(message: pb.Message) -> Budget:
    """How often the task of a message may yet be handed on, where another squad of ours says so."""
    if HOPS not in message.metadata:
        return UNLIMITED
    try:
        return budget_of_hops(message.metadata[HOPS])
    except ValueError as error:
        raise InvalidParamsError(f'metadata["{HOPS}"]: {error}') from None


def _wants_history(params: Any) -> bool:
    return not (params.HasField("history_length") and params.history_length == 0)


def _is_wanted(task: pb.Task, params: pb.ListTasksRequest) -> bool:
    if params.context_id not in ("", task.context_id) or params.status not in (0, task.status.state):
        return False
    since = params.status_timestamp_after if params.HasField("status_timestamp_after") else None
    return since is None or task.status.timestamp.ToNanoseconds() >= since.ToNanoseconds()


def _order_of(task: pb.Task) -> _Order:
    return -task.status.timestamp.ToNanoseconds(), task.id


def _token_of(order: _Order) -> str:
    return f"{-order[0]}.{order[1]}"


def _place_on(token: str) -> _Order | None:
    """After which task a page begins: what comes meanwhile moves nothing, as a number of tasks would."""
    if not token:
        return None
    at, dot, id = token.partition(".")
    if not (dot and id and at.isascii() and at.isdigit() and len(at) < _MOST_DIGITS):
        raise InvalidParamsError("that is no token of a page")
    return -int(at), id
