"""All ways to ask an agent, each with the client of its own protocol, and what each hears in the same words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import mcp_types as types
import nats
from a2a.client import Client as A2AClient
from a2a.client import ClientConfig, create_client
from a2a.helpers.proto_helpers import get_data_parts, new_data_part
from a2a.types import a2a_pb2 as pb
from mcp import Client as McpClient
from mcp.shared.exceptions import MCPError
from nats.aio.client import Client
from synadia_ai.agents import Agents, Envelope, Query, ResponseChunk
from synadia_ai.agents.errors import ProtocolError

from squadron.bridge.jetstream.link import embedded
from squadron.config import Settings
from squadron.runtime.asking.answering import People
from squadron.runtime.asking.caller import Caller
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.background import spawn
from squadron.runtime.streams.writer import Chunk, Restarted
from tests.contract.node_packages import node

#: How long a task may take; where a replica is killed its lease has to lapse first.
WITHIN_S = 60.0


@dataclass
class Told:
    """What a way says of an end.

    Attributes:
        kind: how it ended, in our words.
        reason: of an end that is no result.
        chunks: those of the last attempt that was told of.
    """

    kind: str
    data: Any = None
    reason: str = ""
    chunks: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Entrance:
    """Where agents can be asked.

    Attributes:
        agent: whose topics are asked.
        url: of the gateway with all doors.
        caller: of a process that has joined.
        program: the example in JavaScript, beside its packages; None where there is no node.
    """

    settings: Settings
    agent: str
    url: str
    caller: Caller
    program: Path | None = None

    @contextlib.asynccontextmanager
    async def nats(self) -> AsyncIterator[Client]:
        """A NATS client that knows nothing of us."""
        endpoint = embedded.ensure(self.settings.home)
        client = await nats.connect(endpoint.url, token=endpoint.token)
        try:
            yield client
        finally:
            await client.close()


def _nothing(_: Any) -> None: ...


class Way(ABC):
    """One way to ask.

    Attributes:
        cancels: what who asked hears when the task is cancelled; None if the protocol cancels nothing.
        comes_back: whether a client whose gateway died finds its task again.
    """

    cancels: str | None = "cancelled"
    comes_back = True

    def __init__(self, entrance: Entrance) -> None:
        self.at = entrance

    @abstractmethod
    async def ask(
        self,
        topic: str,
        content: Any,
        *,
        key: str = "",
        answer: str = "",
        on_chunk: Callable[[Any], object] = _nothing,
    ) -> Told:
        """Ask, and hear all that comes of it.

        Args:
            key: under which it is one task, however often it is asked.
            answer: to the only field of what the task asks.
        """

    @abstractmethod
    async def cancelled(self, topic: str, began: Callable[[], Any]) -> str:
        """Ask, cancel it once `began` has waited for its beginning, and say what was heard of it."""


class PythonWay(Way):
    """Our own client."""

    comes_back = False  # it needs no gateway

    async def ask(self, topic, content, *, key="", answer="", on_chunk=_nothing):  # type: ignore[no-untyped-def]
        handle = await self.at.caller.submit(topic, content, AskOptions(within_s=WITHIN_S, task_id=key))
        answering = spawn(self._answer(handle.task_id, answer), "answers") if answer else None
        chunks: list[Any] = []
        async for event in handle.events():
            if isinstance(event, Restarted):
                chunks.clear()
            if isinstance(event, Chunk):
                chunks.append(event.value)
                on_chunk(event.value)
        outcome = await handle.outcome()
        if answering is not None:
            answering.cancel()
        return Told(outcome.kind, outcome.unwrap() if outcome.ok else None, outcome.reason, chunks)

    async def _answer(self, task: str, answer: str) -> None:
        people = People(self.at.caller.ports, self.at.caller.lite_topics)
        async with people.follow() as news:
            async for each in news:
                if each.what == "asked" and each.asked.about == task:
                    await people.answer(each.asked.query_id, {"size": answer}, by="client:test")

    async def cancelled(self, topic: str, began: Callable[[], Any]) -> str:
        handle = await self.at.caller.submit(topic, {}, AskOptions(within_s=WITHIN_S))
        await began()
        await handle.cancel()
        return (await handle.outcome()).kind


class NatsWay(Way):
    """The protocol on bare NATS, by hand."""

    comes_back = False

    async def ask(self, topic, content, *, key="", answer="", on_chunk=_nothing):  # type: ignore[no-untyped-def]
        async with self.at.nats() as client:
            task, told = key or uuid.uuid4().hex, asyncio.Queue[Any]()

            async def hear(message: Any) -> None:
                told.put_nowait(json.loads(message.data))

            await client.subscribe(f"{self.root}.lite.bare.{task}", cb=hear)
            await client.subscribe(f"{self.root}.event.people.asked", cb=hear)
            await self._put(client, task, topic, content)
            chunks: list[Any] = []
            epoch = 0
            while True:
                async with asyncio.timeout(WITHIN_S):
                    message = await told.get()
                payload = message["payload"]
                match message["type"]:
                    case "event" if payload["content"].get("about") == task:
                        await self._answer(client, payload["content"]["query"], answer)
                    case "stream" if "chunk" in payload and payload["epoch"] >= epoch:
                        if payload["epoch"] > epoch:
                            epoch, chunks = payload["epoch"], []
                        chunks.append(payload["chunk"])
                        on_chunk(payload["chunk"])
                    case "result":
                        end = payload["content"]
                        reason = end.get("error", {}).get("message", "")
                        return Told(end["outcome"], end.get("data"), reason, chunks)

    @property
    def root(self) -> str:
        return f"agents.{self.at.settings.env}"

    async def _put(self, client: Client, task: str, topic: str, content: Any) -> None:
        message = {
            **{"id": task, "timestamp": time.time(), "version": "1.0", "type": "task", "source": {"id": "bare"}},
            **{"replyTo": f"{self.root}.lite.bare.{task}", "context": {"conversationId": task}},
            **{"payload": {"content": content}, "routing": {"timeout": 1000 * WITHIN_S}},
        }
        data = json.dumps(message).encode()
        await client.jetstream().publish(f"{self.root}.task.{topic}", data, headers={"Nats-Msg-Id": task})

    async def _answer(self, client: Client, query: str, answer: str) -> None:
        content = {"action": "accept", "content": {"size": answer}, "by": "bare"}
        message = {
            **{"id": uuid.uuid4().hex, "timestamp": time.time(), "version": "1.0", "type": "result"},
            **{"source": {"id": "bare"}, "correlationId": query, "context": {"conversationId": query}},
            "payload": {"content": content},
        }
        headers = {"Nats-Msg-Id": f"{query}.answer", "Nats-TTL": "86400s"}
        subject = f"{self.root}.lite.people.{query}"
        await client.jetstream().publish(subject, json.dumps(message).encode(), headers=headers)

    async def cancelled(self, topic: str, began: Callable[[], Any]) -> str:
        task = uuid.uuid4().hex
        asking = asyncio.create_task(self.ask(topic, {}, key=task))
        await began()
        async with self.at.nats() as client:
            note = json.dumps({"until": time.time() + WITHIN_S, "by": "bare"}).encode()
            await client.jetstream().publish(f"{self.root}.lite.cancel.{task}", note, headers={"Nats-TTL": "90s"})
        return str((await asking).kind)


class McpWay(Way):
    """The SDK's client on one of the two wires."""

    mode = "2026-07-28"
    cancels = ""  # who closes the response hears nothing more

    async def ask(self, topic, content, *, key="", answer="", on_chunk=_nothing):  # type: ignore[no-untyped-def]
        chunks: list[Any] = []

        async def hear(progress: float, total: float | None, message: str | None) -> None:
            if message is not None and message.startswith("Starts again: attempt "):
                chunks.clear()
                return
            chunks.append(message)
            on_chunk(message)

        async def elicit(_: Any, params: Any) -> types.ElicitResult:
            return types.ElicitResult(action="accept", content={"size": answer})

        how: dict[str, Any] = {"meta": {"squadron/idempotencyKey": key}} if key else {}
        if answer:
            how["elicitation_callback"] = elicit
        meta = how.pop("meta", None)
        async with McpClient(f"{self.at.url}/mcp", mode=self.mode, read_timeout_seconds=WITHIN_S, **how) as client:
            await client.list_tools()
            name = topic.replace(".", "__")
            try:
                result = await client.call_tool(name, content, progress_callback=hear, meta=meta)
            except MCPError as error:
                return Told(error.error.data["squadron/outcome"], reason=error.error.message)
        kind = (result.meta or {})["squadron/outcome"]
        if result.is_error:
            return Told(kind, reason=result.content[0].text, chunks=chunks)
        data = result.structured_content
        if self.mode == "legacy" and isinstance(data, dict) and data.keys() == {"result"}:
            # The older wire knows objects alone.
            data = data["result"]
        return Told(kind, data, chunks=chunks)

    async def cancelled(self, topic: str, began: Callable[[], Any]) -> str:
        asking = asyncio.create_task(self.ask(topic, {}))
        await began()
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            return str((await asking).kind)
        return ""


class LegacyMcpWay(McpWay):
    """The same on the wire of 2025-11-25."""

    mode = "legacy"


class A2AWay(Way):
    """The SDK's client over one of the two bindings."""

    binding = "JSONRPC"

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[A2AClient]:
        async with httpx.AsyncClient(timeout=WITHIN_S) as http:
            config = ClientConfig(httpx_client=http, streaming=True, supported_protocol_bindings=[self.binding])
            yield await create_client(f"{self.at.url}/a2a/{self.at.agent}", config)

    async def ask(self, topic, content, *, key="", answer="", on_chunk=_nothing):  # type: ignore[no-untyped-def]
        chunks: list[Any] = []
        async with self._client() as client:
            message = _message(topic, content, key)
            while True:
                task = ""
                async for told in client.send_message(pb.SendMessageRequest(message=message)):
                    task = task or told.task.id
                    # What was emitted before the stream began is in its first snapshot.
                    is_news = told.HasField("artifact_update")
                    for artifact in [told.artifact_update.artifact] if is_news else told.task.artifacts:
                        if artifact.artifact_id == "stream":
                            if not told.artifact_update.append:
                                chunks.clear()
                            for chunk in _data(artifact):
                                chunks.append(chunk)
                                on_chunk(chunk)
                    status = told.status_update.status if told.HasField("status_update") else told.task.status
                    if status.state == pb.TaskState.TASK_STATE_INPUT_REQUIRED and not message.task_id:
                        break
                done = await client.get_task(pb.GetTaskRequest(id=task))
                if message.task_id or done.status.state != pb.TaskState.TASK_STATE_INPUT_REQUIRED:
                    break
                message = _message(topic, {"size": answer}, "")
                message.task_id = task
        kind = str(done.metadata["squadron/outcome"])
        result = [data for each in done.artifacts if each.artifact_id == "result" for data in _data(each)]
        reason = done.status.message.parts[0].text if done.status.HasField("message") else ""
        return Told(kind, result[0] if result else None, reason, chunks)

    async def cancelled(self, topic: str, began: Callable[[], Any]) -> str:
        key = uuid.uuid4().hex
        asking = asyncio.create_task(self.ask(topic, {}, key=key))
        await began()
        async with self._client() as client:
            tasks = (await client.list_tasks(pb.ListTasksRequest())).tasks
            (mine,) = (each.id for each in tasks if each.history[0].message_id == key)
            await client.cancel_task(pb.CancelTaskRequest(id=mine))
        return str((await asking).kind)


class RestA2AWay(A2AWay):
    """The same over HTTP+JSON."""

    binding = "HTTP+JSON"


def _message(topic: str, content: Any, key: str) -> pb.Message:
    message = pb.Message(role=pb.Role.ROLE_USER, parts=[new_data_part(content)])
    message.message_id = key or uuid.uuid4().hex
    message.metadata.update({"squadron/topic": topic})
    return message


def _data(artifact: pb.Artifact) -> list[Any]:
    """What its parts hold."""
    return get_data_parts(artifact.parts) or [part.text for part in artifact.parts]


class SynadiaWay(Way):
    """The official client of the Synadia Agent Protocol."""

    cancels = None

    async def ask(self, topic, content, *, key="", answer="", on_chunk=_nothing):  # type: ignore[no-untyped-def]
        texts: list[Any] = []
        prompt = Envelope.model_validate({"prompt": json.dumps(content), **({"key": key} if key else {})})
        async with self.at.nats() as client:
            agent = await self._agent(client, topic)
            try:
                async for told in agent.prompt(prompt):
                    if isinstance(told, Query):
                        await told.reply(answer)
                    if isinstance(told, ResponseChunk):
                        texts.append(told.text)
                        on_chunk(told.text)
            except ProtocolError as error:
                # As it says it: `service error 400: rejected: why`.
                kind, _, reason = str(error).partition(": ")[2].partition(": ")
                return Told(kind.replace(" ", "_"), reason=reason, chunks=texts)
        # All is text there; the last one is the result.
        return Told("result", _read(texts[-1]), chunks=texts[:-1])

    async def _agent(self, client: Client, topic: str) -> Any:
        session = topic.replace(".", "-")
        async with asyncio.timeout(WITHIN_S):
            while True:
                for each in await Agents(nc=client).discover(stall=0.3):
                    if each.session_name == session and each.agent == self.at.agent:
                        return each

    async def cancelled(self, topic: str, began: Callable[[], Any]) -> str:
        raise AssertionError("the protocol has no way to cancel")


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class JavaScriptWay(Way):
    """The example in JavaScript."""

    comes_back = False

    async def ask(self, topic, content, *, key="", answer="", on_chunk=_nothing):  # type: ignore[no-untyped-def]
        assert self.at.program is not None
        given = [topic, json.dumps(content), *([key] if key else [])]
        chunks: list[Any] = []
        async with node(self.at.program, self.at.settings, "ask", *given) as program:
            while told := await program.line():
                if "restarted" in told:
                    chunks.clear()
                if "chunk" in told:
                    chunks.append(told["chunk"])
                    on_chunk(told["chunk"])
                if "question" in told and program.process.stdin is not None:
                    program.process.stdin.write(f"{answer}\n".encode())
                if end := told.get("outcome"):
                    return Told(end["outcome"], end.get("data"), end.get("error", {}).get("message", ""), chunks)
        raise AssertionError("it said nothing of the end")

    async def cancelled(self, topic: str, began: Callable[[], Any]) -> str:
        assert self.at.program is not None
        key = uuid.uuid4().hex
        asking = asyncio.create_task(self.ask(topic, {}, key=key))
        await began()
        async with node(self.at.program, self.at.settings, "cancel", key) as program:
            await program.rest()
        return str((await asking).kind)


WAYS: dict[str, type[Way]] = {
    "python": PythonWay,
    "nats": NatsWay,
    "mcp-2026": McpWay,
    "mcp-2025": LegacyMcpWay,
    "a2a-jsonrpc": A2AWay,
    "a2a-http": RestA2AWay,
    "synadia": SynadiaWay,
    "javascript": JavaScriptWay,
}
