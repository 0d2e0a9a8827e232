"""Recorded tasks, put to another environment with the gaps between them: how long they take there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import ValidationError

from squadron.bridge.audit.history import AuditTrail
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ConfigError, InvalidSubjectError, RecordingError, SquadronError
from squadron.runtime.store.claims import claim_of
from squadron.runtime.store.sealed import is_sealed
from squadron.runtime.wire.amounts import LAST_S, is_amount
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.limits import UNLIMITED
from squadron.runtime.wire.outcome import Outcome, from_content
from squadron.runtime.wire.subjects import TaskSubject

#: How long after a window ends of its tasks are looked for, in seconds: what takes longer is unknown.
LONGEST_S = 3600.0
#: Time of a task that came without a deadline, in seconds: what an ask has that does not say.
WITHIN_S = 60.0

#: Sends one task: topic, content, options.
Send = Callable[[str, Any, AskOptions], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class RecordedTask:
    """A task as it passed by: when, for how long, and how it ended if that passed by, too.

    Without a `message` it is one that the trail has not as it was: nobody could read it, or it was too large.
    """

    at: float
    topic: str
    environment: str
    message: AgentMessage | None
    ended_at: float | None = None
    outcome: str = ""

    def options(self, conversation: str) -> AskOptions:
        """How it is sent again: under a new id, with as much time as it had."""
        message = self.message
        assert message is not None
        limits = message.payload.constraints
        within_s = WITHIN_S
        if limits is not None and limits.deadline is not None:
            within_s = max(0.001, limits.deadline / 1000 - self.at)
        return AskOptions(
            within_s=within_s,
            priority=message.routing.priority,
            conversation_id=conversation,
            model=message.payload.model,
            parameters=message.payload.parameters,
            budget=limits.budget if limits is not None else UNLIMITED,
        )


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of so many tasks, how long those that ended took, in seconds, and how they ended."""

    tasks: int
    p50: float | None
    p95: float | None
    p99: float | None
    outcomes: dict[str, int]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What came of a load, by topic and in all (`""`).

    Attributes:
        late_s: by how much a task was sent too late at most, in seconds: then it is this process that is too slow,
            and not the environment.
    """

    recorded: dict[str, Latencies] = field(default_factory=dict)
    now: dict[str, Latencies] = field(default_factory=dict)
    late_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def tasks_in(path: str | Path) -> list[RecordedTask]:
    """The tasks that nobody asked while at work on another one, oldest first: those come by themselves.

    Each line is a JSON object with `subject`, `at` (seconds since the epoch) and `message` (the envelope), as a
    trail with contents exports them. Results among them tell how the tasks ended.

    Raises:
        RecordingError: it can't be read, or a line is none; says which.
        ConfigError: there is no task in it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path} can't be read: {error}", hint="`squadron audit` exports one") from None
    traffic = _Traffic(str(path))
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RecordingError(f"no record of a message: {error!r}", hint=_SHAPE, line=number) from None
            traffic.take(record, number)
    return traffic.whole()


async def tasks_of(trail: AuditTrail, *, since: float, until: float) -> list[RecordedTask]:
    """The same of a window of a trail: tasks that were stored in it, and how they ended, be it later.

    Args:
        since, until: the window in seconds since the epoch, without its end.

    Raises:
        ConfigError: there is no trail, or no task with its content in the window.
        BusUnavailableError: the server can't be reached.
    """
    from_to = (datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") for at in (since, until))
    traffic = _Traffic("the trail from {} to {}".format(*from_to))
    async with aclosing(trail.query(since=since)) as records:
        async for record in records:
            if record["at"] < until or record["kind"] == "result":
                traffic.take(record, record["n"])
            if record["at"] >= until and (traffic.all_ended or record["at"] >= until + LONGEST_S):
                break
    return traffic.whole()


class _Traffic:
    """The tasks of a trail and their ends, as they are read."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: dict[str, RecordedTask] = {}
        #: Those that can't be sent, and what is wrong with the first of them.
        self._odd: list[RecordedTask] = []
        self._fault: RecordingError | None = None
        self._ends: dict[str, tuple[float, str]] = {}
        #: Tasks without an end: after a window it is looked at for each record.
        self._open = set[str]()

    @property
    def all_ended(self) -> bool:
        return not self._open

    def take(self, record: Any, number: int) -> None:
        """Take in one record, if it is of a task or a result.

        Raises:
            RecordingError: it is none, nor what a trail has of a task that nobody could read.
        """
        try:
            self._take(record, number)
        except RecordingError as error:
            if (odd := _odd(record)) is None:
                raise
            self._odd.append(odd)
            self._fault = self._fault or error

    def _take(self, record: Any, number: int) -> None:
        if (read := _read(record, number)) is None:
            return
        at, subject, message = read
        if message.type == "result" and message.context.parent_message_id:
            task = message.context.parent_message_id
            self._ends[task] = at, from_content(message.payload.content).kind
            self._open.discard(task)
        elif "kind" in record and not _is_task(subject):
            # What a trail has elsewhere is no task, whatever it says.
            return
        elif message.type == "task" and not message.context.parent_message_id:
            # A strict sender is heard twice, and so is a task that was redriven.
            self._tasks.setdefault(message.id, _task(at, subject, message, number))
            if message.id not in self._ends:
                self._open.add(message.id)

    def whole(self) -> list[RecordedTask]:
        """All tasks, oldest first, with their ends.

        Raises:
            ConfigError: there are none.
            RecordingError: none of them can be sent; says what is wrong with the first.
        """
        if not self._tasks:
            raise self._fault or ConfigError(
                f"{self._name} holds no task with its content", hint="a trail without contents can't be replayed"
            )
        for id, (at, kind) in self._ends.items():
            if id in self._tasks:
                self._tasks[id] = replace(self._tasks[id], ended_at=at, outcome=kind)
        return sorted([*self._tasks.values(), *self._odd], key=lambda task: task.at)


def _is_task(subject: str) -> bool:
    return subject.split(".")[2:3] == ["task"]


def _is_time(at: Any) -> TypeGuard[float]:
    # One that never comes would be waited for.
    return is_amount(at, LAST_S)


def _odd(record: Any) -> RecordedTask | None:
    """A task as a trail has it whose message is no envelope: as a text, in base64, or not at all."""
    match record:
        case {"kind": "task", "at": at, "subject": str() as subject} if _is_task(subject) and _is_time(at):
            environment, topic = subject.split(".")[1], subject.split(".", 3)[-1]
            with contextlib.suppress(InvalidSubjectError):
                topic = TaskSubject.parse(subject).topic
            return RecordedTask(at, topic, environment, None)
    return None


def _read(record: Any, number: int) -> tuple[float, str, AgentMessage] | None:
    try:
        # What a strict sender stored for the trail is in the queue, too.
        if not isinstance(record, dict) or record.get("message") is None or record.get("kind") == "sent":
            return None
        raw, subject = record["message"], str(record["subject"])
        message = AgentMessage.model_validate_json(raw if isinstance(raw, str) else json.dumps(raw))
        at = record.get("at", message.timestamp)
        if not _is_time(at):
            raise ValueError(f"at: {at!r} is no time")
        return at, subject, message
    except ValidationError as error:
        if not _is_task(subject):
            # What is said on lite topics need be no envelope.
            return None
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordingError(f"message.{where}: {first['msg']}", hint=_SHAPE, line=number) from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RecordingError(f"no record of a message: {error!r}", hint=_SHAPE, line=number) from None


_SHAPE = 'each line is {"at": …, "subject": "agents.ENV.task.TOPIC", "message": {…}}'


def _task(at: float, subject: str, message: AgentMessage, number: int) -> RecordedTask:
    try:
        parsed = TaskSubject.parse(subject)
    except InvalidSubjectError as error:
        raise RecordingError(f"subject: {error}", hint=_SHAPE, line=number) from None
    return RecordedTask(at, parsed.topic, parsed.environment, message)


async def put_load(
    tasks: Sequence[RecordedTask],
    send: Send,
    *,
    env: str,
    speed: float = 1.0,
    same_env: bool = False,
    on_progress: Callable[[int, int], None] = lambda sent, ended: None,
) -> LoadReport:
    """Send recorded tasks, with the gaps between them divided by `speed`, and wait for all outcomes.

    Args:
        env: where `send` sends them.
        same_env: whether that may be the environment that they were recorded in.
        on_progress: hears how many were sent and how many of them have ended, whenever that changes.

    Raises:
        ConfigError: it is, and may not; or the speed is none.
    """
    if not 0 < speed < float("inf"):
        raise ConfigError(f"a speed of {speed} is none", hint="1 is as recorded, 10 ten times as fast")
    if not same_env and any(task.environment == env for task in tasks):
        hint = "send them to another one (--to), or say --same-env"
        raise ConfigError(f"these tasks were recorded in {env!r} itself", hint=hint)
    loop, name = asyncio.get_running_loop(), os.urandom(4).hex()
    began, late, done, sent_count = loop.time(), [0.0], list[tuple[RecordedTask, float | None, str]](), 0

    async def once(task: RecordedTask) -> tuple[float | None, str]:
        if task.message is None:
            return None, "unrecorded"
        conversation = task.message.context.conversation_id
        # What belonged together does so again, but not to what is there already.
        here = task.environment == env
        sent = loop.time()
        try:
            options = task.options(f"load-{name}-{conversation}"[:256] if here else conversation)
            if claim_of(task.message) is not None or is_sealed(task.message):
                # It was too large to travel, and is not in the trail; or is for its agent's eyes only.
                return None, "unrecorded"
            outcome = await send(task.topic, task.message.payload.content, options)
        except SquadronError as error:
            # The others go on: what can't be sent is in the report.
            return None, type(error).__name__
        return loop.time() - sent, outcome.kind

    async def one(task: RecordedTask) -> None:
        done.append((task, *await once(task)))
        on_progress(sent_count, len(done))

    async with asyncio.TaskGroup() as group:
        for task in tasks:
            due = began + (task.at - tasks[0].at) / speed
            await asyncio.sleep(max(0.0, due - loop.time()))
            late.append(loop.time() - due)
            group.create_task(one(task))
            sent_count += 1
            on_progress(sent_count, len(done))
    return LoadReport(
        _by_topic(_then(tasks)), _by_topic((t.topic, took, kind) for t, took, kind in done), max(late)
    )


def _then(tasks: Sequence[RecordedTask]) -> Iterable[tuple[str, float | None, str]]:
    for task in tasks:
        yield task.topic, task.ended_at - task.at if task.ended_at is not None else None, task.outcome or "unknown"


def _by_topic(ends: Iterable[tuple[str, float | None, str]]) -> dict[str, Latencies]:
    groups = defaultdict[str, list[tuple[float | None, str]]](list)
    for topic, took, kind in ends:
        groups[topic].append((took, kind))
        groups[""].append((took, kind))
    return {topic: _latencies(group) for topic, group in sorted(groups.items())}


def _latencies(group: Sequence[tuple[float | None, str]]) -> Latencies:
    took = sorted(each for each, _ in group if each is not None)
    # The nearest rank: a figure that was measured.
    p50, p95, p99 = (
        took[min(len(took) - 1, -(-len(took) * p // 100) - 1)] if took else None for p in (50, 95, 99)
    )
    return Latencies(len(group), p50, p95, p99, dict(Counter(kind for _, kind in group)))
