"""The spans of one attempt at a run: what stands in its log, as it is stored."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer

from squadron.actors.runs.entries import (
    Accepted,
    Asking,
    CallEnd,
    CallsEnded,
    Entry,
    Epoch,
    Finished,
    Nudge,
    Sending,
    Started,
    Thought,
    TryFailed,
)
from squadron.actors.runs.references import call_id
from squadron.actors.thinking.model import ChatMessage, ToolCall
from squadron.bridge.otel import headers, names
from squadron.bridge.otel.contents import Contents, messages, turn_messages
from squadron.runtime.redact import scrub
from squadron.runtime.telemetry.happenings import RunGrew
from squadron.runtime.wire.spent import Spent


class RunSpans:
    """One attempt at one run: `invoke_agent`, within it `chat` for each try and `execute_tool` for each own tool.

    Attributes:
        span: that of the attempt.
    """

    def __init__(
        self,
        tracer: Tracer,
        contents: Contents,
        grew: RunGrew,
        agent: str,
        conversation: str,
        earlier: SpanContext | None,
    ) -> None:
        self._tracer, self._contents, self._run = tracer, contents, grew.run
        self._agent, self._conversation = agent, conversation
        epoch = next((entry for entry in grew.entries if isinstance(entry, Epoch)), None)
        attributes: dict[str, Any] = {
            names.GEN_AI_OPERATION: "invoke_agent",
            names.AGENT: agent,
            names.CONVERSATION: conversation,
            names.RUN: grew.run,
        }
        if epoch is not None:
            attributes[names.EPOCH] = epoch.number
        started = next((entry for entry in grew.entries if isinstance(entry, Started)), None)
        if started is not None and started.models:
            attributes |= _model(started.models[0])
        links = [] if earlier is None else [Link(earlier, {names.LINK: "earlier epoch"})]
        self.span = tracer.start_span(f"invoke_agent {agent}", attributes=attributes, links=links)
        if epoch is not None and epoch.number > 1:
            self.span.add_event("run goes on", {names.EPOCH: epoch.number})
        self._within: Context = headers.within(self.span)
        self._chat: Span | None = None
        self._tools: dict[str, Span] = {}
        #: What the model is told with the next question, if contents are wanted, and the calls that it made.
        self._news: list[ChatMessage] = []
        self._calls: dict[str, ToolCall] = {}
        self._used = [0, 0]

    def grow(self, entries: Iterable[Entry]) -> None:
        """Take in what was stored."""
        if not self.span.is_recording():
            return
        for entry in entries:
            self._grow(entry)

    def _grow(self, entry: Entry) -> None:
        match entry:
            case Started():
                self._begin(entry)
            case Asking():
                self._ask(entry)
            case Accepted():
                if self._chat is not None:
                    self._chat.set_attribute(names.RESPONSE_ID, entry.response_id)
            case TryFailed():
                if self._chat is not None and self._contents.wanted:
                    self._contents.put(self._chat, input_messages=messages(self._news))
                self._end_chat({names.ERROR_TYPE: entry.error}, entry.reason or entry.error)
            case Thought():
                self._think(entry)
            case Sending():
                for dispatch in entry.calls:
                    if dispatch.kind == "tool":
                        self._call(dispatch.call, dispatch.topic)
            case CallsEnded():
                for end in entry.ends:
                    self._end_call(end)
            case Finished():
                self.span.set_attribute(names.STOPPED, entry.stopped)
                self.close("outcome", entry.error)
            case Nudge():
                self._news.append(ChatMessage("user", entry.text))
                self._tell(entry)
            case Epoch():
                pass
            case _:
                self._tell(entry)

    def _tell(self, entry: Entry) -> None:
        call = getattr(entry, "call", "")
        self.span.add_event(f"run {entry.kind}", {names.CALL: call} if call else None)

    def _begin(self, started: Started) -> None:
        if self._contents.wanted:
            system = [each.content for each in started.opening if each.role == "system"]
            self._news = [each for each in started.opening if each.role != "system"]
            parts = [{"type": "text", "content": text} for text in system]
            self._contents.put(self.span, system_instructions=parts, input_messages=messages(self._news))

    # --- the model -----------------------------------------------------------------------------------

    def _ask(self, asking: Asking) -> None:
        self._end_chat({names.END: "given up"})
        model = _model(asking.model)
        self._chat = self._tracer.start_span(
            f"chat {model[names.REQUEST_MODEL]}",
            self._within,
            kind=SpanKind.CLIENT,
            attributes={
                names.GEN_AI_OPERATION: "chat",
                names.AGENT: self._agent,
                names.CONVERSATION: self._conversation,
                **model,
                names.ROUND: asking.round,
                names.TRY: asking.number,
            },
        )

    def _think(self, thought: Thought) -> None:
        turn, usage = thought.turn, thought.turn.usage
        model = _model(turn.model)
        if self._chat is None:
            # An attempt before asked, and this one took the answer up.
            began_ns = time.time_ns() - int(1e9 * thought.seconds)
            self._chat = self._tracer.start_span(
                f"chat {model[names.REQUEST_MODEL]}",
                self._within,
                kind=SpanKind.CLIENT,
                attributes={names.GEN_AI_OPERATION: "chat", names.AGENT: self._agent, **model},
                start_time=began_ns,
            )
        used = {
            names.INPUT_TOKENS: usage.input,
            names.OUTPUT_TOKENS: usage.output,
            names.CACHE_READ_TOKENS: usage.cache_read,
            names.CACHE_WRITE_TOKENS: usage.cache_write,
            names.REASONING_TOKENS: usage.reasoning,
        }
        self._used = [self._used[0] + usage.input, self._used[1] + usage.output]
        attributes: dict[str, Any] = {name: tokens for name, tokens in used.items() if tokens}
        attributes |= {names.RESPONSE_MODEL: model[names.REQUEST_MODEL], names.FINISH_REASONS: (turn.stop,)}
        attributes[names.ROUND] = thought.round
        if turn.response_id:
            attributes[names.RESPONSE_ID] = turn.response_id
        if (spent := Spent.of_wire(thought.spent)).usd_micros:
            attributes[names.COST_USD] = spent.usd
        if self._contents.wanted:
            for position, call in enumerate(turn.tool_calls):
                self._calls[call_id(self._run, thought.round, position)] = call
            told, self._news = messages(self._news), []
            self._contents.put(self._chat, input_messages=told, output_messages=turn_messages(turn))
        self._end_chat(attributes)

    def _end_chat(self, attributes: Mapping[str, Any], error: str = "") -> None:
        if self._chat is not None:
            self._chat.set_attributes(attributes)
            _end(self._chat, error)
            self._chat = None

    # --- its calls -----------------------------------------------------------------------------------

    def _call(self, call: str, tool: str) -> None:
        attributes = {
            names.GEN_AI_OPERATION: "execute_tool",
            names.TOOL: tool,
            names.TOOL_TYPE: "function",
            names.TOOL_CALL_ID: call,
            names.AGENT: self._agent,
        }
        span = self._tools[call] = self._tracer.start_span(
            f"execute_tool {tool}", self._within, attributes=attributes
        )
        if call in self._calls:
            self._contents.put(span, arguments=self._calls[call].arguments)

    def _end_call(self, end: CallEnd) -> None:
        failed = "" if end.outcome == "result" else end.reason or end.outcome
        if self._contents.wanted:
            shown = str(end.data) if end.outcome == "result" else end.reason
            self._news.append(ChatMessage("tool", shown, tool_call_id=end.call, is_error=bool(failed)))
        if (span := self._tools.pop(end.call, None)) is None:
            # A task of others has spans of its own; what was refused never went out.
            told = {names.CALL: end.call, names.OUTCOME: end.outcome, names.DESTINATION: end.topic}
            self.span.add_event("call ended", told)
            return
        self._contents.put(span, result=end.data)
        span.set_attribute(names.OUTCOME, end.outcome)
        if failed:
            span.set_attribute(names.ERROR_TYPE, end.outcome)
        _end(span, failed)

    # --- the end -------------------------------------------------------------------------------------

    def close(self, end: str, error: str = "") -> None:
        """The attempt ends: so does all that is open. May be called twice."""
        if not self.span.is_recording():
            return
        self._end_chat({names.END: end})
        for span in self._tools.values():
            span.set_attribute(names.END, end)
            span.end()
        self._tools.clear()
        if any(self._used):
            used = {names.INPUT_TOKENS: self._used[0], names.OUTPUT_TOKENS: self._used[1]}
            self.span.set_attributes(used)
        self.span.set_attribute(names.END, end)
        if error:
            self.span.set_attribute(names.ERROR_TYPE, "run_failed")
        _end(self.span, error)


def _end(span: Span, error: str) -> None:
    if error:
        span.set_status(Status(StatusCode.ERROR, scrub(error)))
    span.end()


def _model(name: str) -> dict[str, str]:
    provider, colon, model = name.partition(":")
    if not colon:
        return {names.REQUEST_MODEL: name}
    return {names.PROVIDER: names.PROVIDERS.get(provider, provider), names.REQUEST_MODEL: model}
