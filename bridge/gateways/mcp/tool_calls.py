"""A call of a tool is a task: progress from its chunks, questions to who calls, a result from its outcome."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Any, get_args

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.kept_tasks import KeptTask, KeptTasks, UnknownTaskError
from squadron.bridge.gateways.mcp.client_inputs import with_client
from squadron.bridge.gateways.mcp.tool_list import LOG_TAG, ToolList, is_modern, takes_client
from squadron.bridge.gateways.mcp.tool_results import result_of, text_of
from squadron.bridge.gateways.visitors import ANYBODY, Visitor, behalf_of
from squadron.runtime.asking.answering import OpenQuestion
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.background import spawn
from squadron.runtime.errors import BusUnavailableError, InvalidInputError, SquadronError
from squadron.runtime.logs import get_logger
from squadron.runtime.streams.writer import Chunk, Ended, Restarted
from squadron.runtime.wire.outcome import Outcome
from squadron.runtime.wire.topics import SemanticTopic

_log = get_logger("squadron.gateway")

#: What a client may say of a call in its `_meta`: under which key it is one call however often it is sent, and the
#: conversation that it belongs to.
KEY_META, CONVERSATION_META = "squadron/idempotencyKey", "squadron/conversationId"
#: Longest of either, in characters.
MOST_META = 200
#: How much of a chunk is told as progress, in characters.
PROGRESS_CHARACTERS = 2000

Context = ServerRequestContext[Any, Any]
_LEVEL = types.LoggingLevel


def visitor_of(ctx: Context) -> Visitor:
    """Who is behind a request; on the standard streams it is who started us."""
    if ctx.request is None:
        return ANYBODY
    visitor: Visitor = ctx.request.scope["state"]["visitor"]
    return visitor


def can_be_asked(ctx: Context) -> bool:
    """Whether questions can be put to the client of this request."""
    offered = ctx.session.client_capabilities
    return offered is not None and offered.elicitation is not None


class ToolCalls:
    """Calls of tools, for whoever comes."""

    def __init__(self, front: Front, tools: ToolList, kept: KeptTasks) -> None:
        self._front, self._tools, self._kept = front, tools, kept

    def topic_of(self, name: str, visitor: Visitor) -> SemanticTopic:
        """The topic of a tool that a visitor may call.

        Raises:
            MCPError: there is none.
        """
        topic = self._tools.find(name, visitor)
        if topic is None:
            raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown tool: {name[:100]}")
        return topic

    async def call(
        self, ctx: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        """Serve one `tools/call` to its end, or to the next question to its caller."""
        visitor = visitor_of(ctx)
        topic = self.topic_of(params.name, visitor)
        if takes_client(topic):
            return await self._call_with_client(ctx, topic, params)
        modern = is_modern(ctx.protocol_version)
        if params.request_state is not None:
            handle = (await self._resumed(params, visitor)).handle
        elif _told(ctx, KEY_META) or (modern and can_be_asked(ctx)):
            handle = (await self.kept(ctx, topic, params)).handle
        else:
            handle = await self._front.place.caller.submit(
                topic.name, params.arguments or {}, self._options(ctx, visitor)
            )
        ended = await self._until_end_or_question(ctx, handle, topic)
        if isinstance(ended, Outcome):
            return result_of(topic, ended, ctx.protocol_version)
        state = json.dumps({"task": handle.task_id})
        return types.InputRequiredResult(input_requests={ended.query_id: elicitation(ended)}, request_state=state)

    async def _call_with_client(
        self, ctx: Context, topic: SemanticTopic, params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        async def ask(content: dict[str, Any]) -> Outcome:
            options = self._options(ctx, visitor_of(ctx))
            handle = await self._front.place.caller.submit(topic.name, content, options)
            ended = await self._until_end_or_question(ctx, handle, topic, may_ask=False)
            assert isinstance(ended, Outcome)
            return ended

        got = await with_client(ctx, params.arguments or {}, params, ask)
        return got if isinstance(got, types.InputRequiredResult) else result_of(topic, got, ctx.protocol_version)

    async def kept(self, ctx: Context, topic: SemanticTopic, params: types.CallToolRequestParams) -> KeptTask:
        """Submit a task that outlives its request."""
        visitor, key = visitor_of(ctx), _told(ctx, KEY_META)
        about = {"tool": params.name, "topic": topic.name}
        id, options = self._kept.id_for(visitor, key), self._options(ctx, visitor)
        content = params.arguments or {}
        try:
            return await self._kept.submit(visitor, topic.name, content, options, id=id, about=about)
        except asyncio.CancelledError:
            if not self._front.leaving.is_set():
                # It is stored all the same, and its client was told of none.
                spawn(self._cancel_kept(visitor, id), f"cancel {id}")
            raise

    def abandon(self, handle: Handle) -> None:
        """Have a task stopped whose client closed the response (HTTP), or said so (the standard streams)."""
        if not self._front.leaving.is_set():
            spawn(self._cancel(handle), f"cancel {handle.task_id}")

    def _options(self, ctx: Context, visitor: Visitor) -> AskOptions:
        return AskOptions(
            within_s=self._front.within_s,
            conversation_id=_told(ctx, CONVERSATION_META),
            on_behalf_of=behalf_of(visitor, self._front.place.ports.principal),
        )

    async def _resumed(self, params: types.CallToolRequestParams, visitor: Visitor) -> KeptTask:
        """The task of a call that comes back with answers, which are handed on.

        Raises:
            MCPError: there is no such task, or an answer does not fit.
        """
        try:
            # The state was sealed by us, and is bound to this visitor, tool and arguments.
            task = await self._kept.find(visitor, json.loads(params.request_state or "")["task"])
        except (UnknownTaskError, ValueError, TypeError, LookupError):
            raise MCPError(code=types.INVALID_PARAMS, message="The call is over, or never was") from None
        await self.answer(task.id, params.input_responses or {}, visitor)
        return task

    async def answer(self, task_id: str, responses: Mapping[str, Any], visitor: Visitor) -> None:
        """Hand on what a client answers to the questions about a task.

        Raises:
            MCPError: an answer does not fit its question.
        """
        for query_id, response in responses.items():
            reply = response if isinstance(response, types.ElicitResult) else None
            if reply is None:
                raise MCPError(
                    code=types.INVALID_PARAMS, message=f"{query_id[:80]} is no answer to an elicitation"
                )
            try:
                await self._front.questions.answer(task_id, query_id, reply.action, reply.content, visitor)
            except InvalidInputError as error:
                raise MCPError(code=types.INVALID_PARAMS, message=str(error)) from None
            except BusUnavailableError:
                raise
            except SquadronError as error:
                # It was answered elsewhere, or nobody waits for it any more: the task goes on by that.
                _log.info("answer.not_taken", task=task_id, query=query_id, why=str(error))

    async def _until_end_or_question(
        self, ctx: Context, handle: Handle, topic: SemanticTopic, *, may_ask: bool = True
    ) -> Outcome | OpenQuestion:
        """Wait for the outcome, or for a question that a client which can be asked has to come back for."""
        asked_before: set[str] = set()
        ending = spawn(self._follow(ctx, handle, topic), f"call of {topic.name}")
        try:
            while may_ask and can_be_asked(ctx):
                asking = spawn(
                    self._front.questions.next_about(handle.task_id, but=asked_before),
                    f"questions of {handle.task_id}",
                )
                try:
                    await asyncio.wait((ending, asking), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    asking.cancel()
                if ending.done():
                    break
                question = asking.result()
                if is_modern(ctx.protocol_version):
                    return question
                asked_before.add(question.query_id)
                await self._ask_now(ctx, handle.task_id, question)
            return await asyncio.shield(ending)
        except asyncio.CancelledError:
            self.abandon(handle)
            raise
        finally:
            ending.cancel()

    async def _ask_now(self, ctx: Context, task_id: str, question: OpenQuestion) -> None:
        """Put a question over the connection of a session, as clients of 2025-11-25 know it."""
        form = elicitation(question).params
        assert isinstance(form, types.ElicitRequestFormParams)
        reply = await ctx.session.elicit_form(form.message, form.requested_schema, ctx.request_id)
        with suppress(MCPError):  # one that does not fit is asked for elsewhere, or runs out of time
            await self.answer(task_id, {question.query_id: reply}, visitor_of(ctx))

    async def _follow(self, ctx: Context, handle: Handle, topic: SemanticTopic) -> Outcome:
        """Wait for the outcome, and tell of chunks as progress if the client wants to hear of it."""
        if (ctx.meta or {}).get("progress_token") is None and LOG_TAG not in topic.tags:
            return await handle.outcome()
        told = 0
        async with aclosing(handle.events()) as events:
            async for event in events:
                match event:
                    case Chunk() if LOG_TAG in topic.tags and _is_log(event.value):
                        await _log_to_client(ctx, event.value)
                        continue
                    case Chunk():
                        message = text_of(event.value)[:PROGRESS_CHARACTERS]
                    case Restarted():
                        message = f"Starts again: attempt {event.attempt}."
                    case Ended():
                        return event.outcome
                    case _:
                        continue
                told += 1
                await ctx.session.report_progress(told, None, message)
        return await handle.outcome()

    async def _cancel(self, handle: Handle) -> None:
        with suppress(SquadronError):
            await handle.cancel()

    async def _cancel_kept(self, visitor: Visitor, id: str) -> None:
        with suppress(SquadronError):
            await (await self._kept.find(visitor, id)).handle.cancel()


def elicitation(asked: OpenQuestion) -> types.ElicitRequest:
    """A question as MCP's form."""
    question = asked.question
    message = question.message
    if question.proposal is not None:
        message += f"\n{question.proposal.topic} {text_of(question.proposal.arguments)}"
    return types.ElicitRequest(
        params=types.ElicitRequestFormParams(message=message, requested_schema=dict(question.schema))
    )


def _is_log(chunk: Any) -> bool:
    return isinstance(chunk, dict) and chunk.keys() == {"level", "data"} and chunk["level"] in get_args(_LEVEL)


async def _log_to_client(ctx: Context, chunk: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        # Gone from the newer wire, and what clients of the older one still show.
        warnings.simplefilter("ignore", MCPDeprecationWarning)
        await ctx.session.send_log_message(chunk["level"], chunk["data"], related_request_id=ctx.request_id)


def _told(ctx: Context, name: str) -> str:
    value = (ctx.meta or {}).get(name, "")
    if not isinstance(value, str) or len(value) > MOST_META:
        raise MCPError(code=types.INVALID_PARAMS, message=f"_meta.{name} has to be a text of at most {MOST_META}")
    return value
