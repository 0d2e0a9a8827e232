"""Agents of the Synadia Agent Protocol 0.3 on the same NATS: how they are found, and prompted."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from squadron.runtime.errors import ServerUnavailableError, Terminal
from squadron.runtime.ports.bus import Note, Subscription, UnreliableBus
from squadron.runtime.wire.doors_passed import doors_tags
from squadron.runtime.wire.subjects import INBOXES, is_foreign

#: Answers to a question to all come within this of each other, and of the question, in seconds (the SDK's own).
STALL_S, ALL_WITHIN_S = 0.75, 5.0
#: How long an agent may be silent over a prompt (§6), and between two signs of life (§8), in seconds.
SILENT_S, AWAY_S = 60.0, 90.0
#: What a prompt may hold where an agent does not say, in bytes.
MOST_BYTES = 1024 * 1024
#: Where agents are prompted. No other subject is taken from a stranger: we publish there with our own rights.
_PROMPT = re.compile(r"agents\.prompt((?:\.[A-Za-z0-9_-]{1,63}){3})")
_SIZE = re.compile(r"(\d{1,9})\s*([KMG]?)B")
_FACTOR = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_CODE, _WHY = "Nats-Service-Error-Code", "Nats-Service-Error"
#: Of errors these may be over the next time; and those of ours say themselves whether they may.
_AGAIN = ("429", "503")


@dataclass(frozen=True, slots=True)
class SynadiaPeer:
    """One agent; several processes may be it.

    Attributes:
        subject: where it is prompted.
        attachments: whether it takes some.
        most_bytes: of a prompt.
        tags: of its topic.
    """

    subject: str
    description: str
    attachments: bool
    most_bytes: int = MOST_BYTES
    tags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Agent, owner and session as one."""
        return "-".join(self.subject.split(".")[2:])

    @property
    def owner(self) -> str:
        """Whose it is."""
        return self.subject.split(".")[3]

    @classmethod
    def of(cls, data: bytes) -> SynadiaPeer | None:
        """Read a record of `$SRV.INFO`; None if it is of something else, or of what goes round between squads."""
        try:
            info = json.loads(data)
            if info["name"] != "agents":
                return None
            (prompt,) = (each for each in info["endpoints"] if each["name"] == "prompt")
            subject, accepts = str(prompt["subject"]), prompt.get("metadata") or {}
            if _PROMPT.fullmatch(subject) is None:
                return None
            size = _SIZE.fullmatch(str(accepts.get("max_payload", "")))
            most = int(size[1]) * _FACTOR[size[2]] if size else MOST_BYTES
            takes = accepts.get("attachments_ok") in ("true", True)
            passed = doors_tags((info.get("metadata") or {}).get("squadron_doors"))
            return cls(subject, str(info.get("description") or ""), takes, most, passed)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None


class SynadiaPeers:
    """Who is there now: asked for, and heard of by their heartbeats.

    Args:
        name: of whoever asks; where there are roles it hears of nothing but what is for it.
        but: the owner of our own, which are topics already.
        agent, owner: only those, if given.
    """

    def __init__(self, bus: UnreliableBus, name: str, *, but: str = "", agent: str = "", owner: str = "") -> None:
        self._bus, self._name, self._but, self._agent, self._owner = bus, name, but, agent, owner
        self._known: dict[str, SynadiaPeer] = {}
        self._beats: dict[str, float] = {}
        self._ear: Subscription | None = None
        #: Set when somebody is heard of who is not known.
        self.news = asyncio.Event()

    async def start(self) -> None:
        """Hear of heartbeats."""
        beats = f"agents.hb.{self._agent or '*'}.{self._owner or '*'}.*"
        self._ear = await self._bus.subscribe(beats, self._hear_beat)

    async def aclose(self) -> None:
        """Hear nothing more. May be called twice."""
        if self._ear is not None:
            await self._ear.aclose()

    def _hear_beat(self, note: Note) -> None:
        subject = note.subject.replace(".hb.", ".prompt.", 1)
        if _PROMPT.fullmatch(subject) is None or not self._is_wanted(subject):
            return
        self._beats[subject] = time.monotonic()
        if subject not in self._known:
            self.news.set()

    def _is_wanted(self, subject: str) -> bool:
        _, _, agent, owner, _ = subject.split(".")
        return owner != self._but and self._agent in ("", agent) and self._owner in ("", owner)

    async def now(self) -> list[SynadiaPeer]:
        """All of them, by name. One that does not answer counts as long as its heart beats."""
        self.news.clear()
        found = {each.subject: each async for each in self._asked() if self._is_wanted(each.subject)}
        alive = time.monotonic() - AWAY_S
        self._beats = {subject: at for subject, at in self._beats.items() if at > alive}
        kept = {subject: each for subject, each in self._known.items() if subject in self._beats}
        self._known = kept | found
        return sorted(self._known.values(), key=lambda each: each.name)

    def most_bytes(self, subject: str) -> int:
        """What a prompt to one may hold."""
        known = self._known.get(subject)
        return MOST_BYTES if known is None else known.most_bytes

    async def _asked(self) -> AsyncIterator[SynadiaPeer]:
        answers: asyncio.Queue[Note] = asyncio.Queue()
        inbox = self._inbox()
        ear = await self._bus.subscribe(inbox, answers.put_nowait)
        try:
            await self._bus.publish("$SRV.INFO.agents", b"", reply=inbox)
            give_up_at = time.monotonic() + ALL_WITHIN_S
            while time.monotonic() < give_up_at:
                if (peer := SynadiaPeer.of((await _next(answers, STALL_S)).data)) is not None:
                    yield peer
        except TimeoutError:
            return
        finally:
            await ear.aclose()

    async def prompt(self, subject: str, body: bytes) -> AsyncGenerator[tuple[str, Any], None]:
        """Prompt an agent, and hear what it says: kind and data of each message, until its end.

        Raises:
            ServerUnavailableError: nobody is there, it has fallen silent, or has too much to do.
            Terminal: it refuses, failed, or says what is none of the protocol.
        """
        told: asyncio.Queue[Note] = asyncio.Queue()
        inbox = self._inbox()
        ear = await self._bus.subscribe(inbox, told.put_nowait)
        try:
            await self._bus.publish(subject, body, reply=inbox)
            while True:
                try:
                    note = await _next(told, SILENT_S)
                except TimeoutError:
                    raise ServerUnavailableError(f"{subject} says nothing for {SILENT_S:g} s") from None
                headers = note.headers
                if code := headers.get(_CODE):
                    raise _refused(code, headers.get(_WHY, ""), note.data)
                if headers.get("Status") == "503":
                    raise ServerUnavailableError(f"nobody answers on {subject}")
                if not note.data:
                    return
                try:
                    said = json.loads(note.data)
                    kind, data = str(said["type"]), said.get("data")
                except (ValueError, TypeError, LookupError, RecursionError):
                    raise Terminal(f"{subject} answers with what is none of the protocol") from None
                yield kind, data
        finally:
            await ear.aclose()

    def _inbox(self) -> str:
        # Where roles let answers to this name go; `_INBOX.agents` the protocol's own clients share.
        return f"_INBOX.our-agents.{self._name}.{os.urandom(16).hex()}"


async def _next(notes: asyncio.Queue[Note], within_s: float) -> Note:
    async with asyncio.timeout(within_s):
        return await notes.get()


def answer_to(data: Any) -> tuple[str, str]:
    """What is asked on the way, and where an answer goes.

    Raises:
        Terminal: it is no question, or an answer there could be taken for something else.
    """
    try:
        message, where = str(data["prompt"]), str(data["reply_subject"])
    except (TypeError, LookupError):
        raise Terminal("it asks something without saying what, or where to answer") from None
    if not (is_foreign(where) and where.startswith(INBOXES)):
        raise Terminal(f"it wants an answer on {where[:80]!r}, which is no inbox")
    return message, where


def response(data: Any) -> tuple[str, list[Any]]:
    """Text and attachments of an answer."""
    if isinstance(data, dict):
        attached = data.get("attachments")
        return str(data.get("text", "")), attached if isinstance(attached, list) else []
    return data if isinstance(data, str) else json.dumps(data), []


def _refused(code: str, why: str, data: bytes) -> Exception:
    try:
        retryable = json.loads(data)["retryable"] is True
    except (ValueError, TypeError, LookupError):
        retryable = code in _AGAIN
    said = f"{code[:3]}: {why[:1000]}"
    return ServerUnavailableError(said) if retryable else Terminal(said)
