"""A scene for thieves: who has stolen the credential of one agent, and those whom it is used against."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from squadron.bridge.jetstream.audit_streams import audit_subject, make_trail
from squadron.bridge.jetstream.link.at_home import user_of
from squadron.bridge.jetstream.publish_acks import read_ack
from squadron.bridge.jetstream.stream_names import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.errors import ClaimLostError
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.subjects import Subjects

#: What nobody but the two who talk is to read.
SECRET = b"between us"

#: Whether an attack has come to something, asked anew until it is known.
Check = Callable[[], Awaitable[bool]]


@dataclass
class Scene:
    """A server where the clerk works for Ann; the thief has the credential of the analyst.

    Attributes:
        api: where the thief reaches JetStream.
        bridge: sees and may everything.
        ann: a client.
        clerk: another agent; it asks the MCP server "files".
        tools: that server, on the bus.
    """

    thief: Client
    api: str
    bridge: Wiring
    ann: Wiring
    clerk: Wiring
    tools: Wiring
    heard: list[Msg] = field(default_factory=list)
    #: The large payload of Ann.
    payload: str = ""

    @property
    def subjects(self) -> Subjects:
        return self.bridge.ports.subjects

    @property
    def names(self) -> StreamNames:
        return StreamNames(self.subjects.environment)

    @property
    def answers(self) -> str:
        """A topic of Ann's, where answers to her come."""
        return self.subjects.lite("ann-asks", "task-1")

    async def set(self) -> None:
        """The clerk has a mailbox with a task in it, Ann an answer, a large payload, and there is a memory."""
        ports, s = self.bridge.ports, self.subjects
        await ports.queue.declare(Mailbox("clerk", ("office.file",), 30.0))
        await ports.queue.declare(Mailbox("analyst", ("math.add",), 30.0))
        await ports.queue.put(s.task("office.file"), self._message("task"), msg_id="task-1")
        await ports.lite.append(self.answers, self._message("result"))
        await self.clerk.ports.own.append(s.lite("memory-clerk", "c"), self._message("event"))
        await ports.dead.append(s.dead("clerk", "m0"), self._message("task"))
        await make_trail(self.bridge.connection, self.names)
        await self.bridge.connection.ask(audit_subject(self.names), SECRET, read_ack)
        await self.clerk.ports.runs.append(s.run("run-1"), self._message("event"))
        await self.bridge.records.append(s.record("binding", "b"), b"{}")
        self.payload = await self.ann.ports.claims.vault.store(SECRET, keep_s=600)
        await self.sent()
        # Where agents are cut from each other the server tells logs on, a moment later.
        while await self.ann.ports.runs.last(s.run("run-1")) is None:
            await asyncio.sleep(0.005)

    def _message(self, type: Any, secret: bytes = SECRET) -> bytes:
        identity = self.ann.ports.identity
        return AgentMessage.new(type, identity, {"text": secret.decode()}, conversation_id="c", id="m").encode()

    async def send(self, subject: str, data: bytes = b"{}", *, reply: str = "", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await self.thief.publish(subject, data, reply=reply, headers=named or None)

    async def sent(self) -> None:
        """The server has taken all that the thief has sent: nats-py's ping overtakes what is to be sent yet."""
        await self.thief._flush_pending(force_flush=True)
        await self.thief.flush()

    async def listen(self, pattern: str) -> None:
        async def hear(msg: Msg) -> None:
            self.heard.append(msg)

        await self.thief.subscribe(pattern, cb=hear)
        await self.sent()

    async def call(self, call: str, query: Any = None) -> None:
        """Call the API; what it answers is heard."""
        inbox = self.thief.new_inbox()
        await self.listen(inbox)
        data = b"" if query is None else json.dumps(query).encode()
        await self.send(f"{self.api}.{call}", data, reply=inbox)

    async def read_all(self, stream: str, pattern: str) -> Check:
        await self.call(f"DIRECT.GET.{stream}", {"seq": 1, "batch": 100, "next_by_subj": pattern})
        return self.learned()

    def own_places(self, key: str) -> tuple[tuple[str, str], ...]:
        """Streams and subjects where the clerk may keep what has this key: with all others, and alone."""
        shared = self.names.runs if ".run." in key else self.names.lite
        own = key.replace(f".{self.subjects.environment}.", f".{self.subjects.environment}.own.clerk.", 1)
        return (shared, key), (self.names.own("clerk"), own)

    def payload_places(self, kind: str, name: str) -> tuple[str, str]:
        """Where in the bucket Ann's large payload may stand: among all others, and in her own place."""
        bucket = f"$O.{self.names.bucket}.{kind}"
        return f"{bucket}.{name}", f"{bucket}.{user_of(self.ann.settings)}.{name}"

    def lost(self) -> Check:
        """Whether Ann's large payload is gone, or not what she stored."""

        async def look() -> bool:
            try:
                return await self.ann.ports.claims.vault.fetch(self.payload) != SECRET
            except ClaimLostError:
                return True

        return look

    def learned(self, what: bytes = SECRET) -> Check:
        """Whether the thief has heard of it."""

        async def look() -> bool:
            return any(what in msg.data for msg in self.heard)

        return look

    def got(self, field: str) -> Check:
        """Whether an answer has this field, and is no error."""

        async def look() -> bool:
            answers = [json.loads(msg.data) for msg in self.heard if msg.data.startswith(b"{")]
            return any(field in answer and "error" not in answer for answer in answers)

        return look

    def stored(self, stream: str, subject: str) -> Check:
        """Whether there is such a message."""

        async def look() -> bool:
            answer = await self.bridge.connection.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
            return "message" in answer

        return look

    def gone(self, stream: str) -> Check:
        """Whether the stream is gone, or empty."""

        async def look() -> bool:
            info = await self.bridge.connection.api(f"STREAM.INFO.{stream}", {})
            return "error" in info or info["state"]["messages"] == 0

        return look

    def consumer(self, name: str, *, there: bool) -> Check:
        async def look() -> bool:
            info = await self.bridge.connection.api(f"CONSUMER.INFO.{self.names.tasks}.{name}", {})
            return ("error" not in info) == there

        return look

    async def heard_by(self, place: Wiring, pattern: str) -> Check:
        """Whether another process hears something there from now on."""
        told: list[Any] = []
        await place.ports.bus.subscribe(pattern, told.append)

        async def look() -> bool:
            return bool(told)

        return look

    async def barrier(self, call: str = "") -> None:
        """All that the thief has sent was worked off, or refused.

        Args:
            call: of JetStream, that the thief may make; by default one that the analyst may.
        """
        own = f"DIRECT.GET.{self.names.registry}.{self.subjects.presence('analyst', '*')}"
        for _ in range(2):
            answered = asyncio.Event()

            async def hear(_: Msg, answered: asyncio.Event = answered) -> None:
                answered.set()

            inbox = self.thief.new_inbox()
            await self.thief.subscribe(inbox, cb=hear)
            await self.thief.publish(f"{self.api}.{call or own}", b"", reply=inbox)
            await self.sent()
            await answered.wait()
        await self.bridge.connection.api(f"STREAM.INFO.{self.names.tasks}", {})
        await self.ann.connection.flush()
