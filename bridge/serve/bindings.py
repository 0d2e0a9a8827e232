"""Any Ray actor method or Serve handle behind a topic: the bridge pulls for it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import ray
from ray import serve
from ray.actor import ActorHandle
from ray.serve.handle import DeploymentHandle

from squadron.bridge.place import Place
from squadron.runtime.background import cancel_all, spawn
from squadron.runtime.errors import ConfigError, RouteConflictError, SquadronError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.registry.registry import STAND_IN
from squadron.runtime.retries import Retries, summary_of
from squadron.runtime.running.context import TurnContext
from squadron.runtime.running.pump import Pump
from squadron.runtime.running.turn import Turns
from squadron.runtime.wire.subjects import check_pattern, overlap
from squadron.runtime.wire.topics import AgentCard, SemanticTopic

#: A bound call may run so long, in seconds; as for agents.
RUN_TIMEOUT_S = 120.0


class CallHandler:
    """`turn.Handler` that calls a method of a Ray actor or Serve handle."""

    run_timeout_s = RUN_TIMEOUT_S
    retries = Retries()

    def __init__(self, topic: SemanticTopic, target: Any, method: str) -> None:
        self.topic = topic
        self._target, self._method = target, method

    async def run(self, content: Any, context: TurnContext) -> Any:
        """Call it with the content; its own exception counts, not Ray's wrapping of it."""
        call = getattr(self._target, self._method).remote
        try:
            return await (call(**content) if isinstance(content, dict) else call(content))
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None


@dataclass(frozen=True)
class _Served:
    """A binding whose calls are made."""

    record: dict[str, Any]
    mailbox: Mailbox
    turns: Turns
    pump: Pump


class Bindings:
    """The bridge's bindings, kept in the journal so that its successor has them too."""

    def __init__(self, wiring: Place) -> None:
        self._wiring = wiring
        #: What is recorded, and what of it is served, by pattern.
        self._recorded: dict[str, dict[str, Any]] = {}
        self._served: dict[str, _Served] = {}
        #: Those that are to go, as long as something of them is left.
        self._unwanted: set[str] = set()
        #: Who binds or unbinds a pattern; the bridge answers many calls at once, and an end waits for what runs.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        #: Whether mailboxes, records and cards are to be made anew, because the server has lost them.
        self.to_restore = False
        self._lost: set[str] = set()
        #: Why what is recorded is not served, as it was last told, by pattern.
        self._told: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._log = get_logger("squadron.bindings")

    async def start(self) -> None:
        """Take up the bindings of an earlier bridge, and keep all of them in the registry."""
        for entry in await self._wiring.records.latest(self._wiring.ports.subjects.registry("binding")):
            try:
                record = json.loads(entry.data)
                self._recorded[record["pattern"]] = record
            except (ValueError, TypeError, LookupError) as error:
                self._log.error("binding.bad_record", key=entry.key, error=summary_of(error))
        await self._put_right()
        # Apart: what is put right may wait for long, and a sign of life may not.
        for work in (self._keep_presence(), self._keep_right()):
            self._tasks.append(spawn(work, "bindings", lasting=True))

    async def bind(self, pattern: str, target: Any, method: str, *, slots: int, description: str) -> None:
        """Serve `pattern` with `target.method`.

        Raises:
            ConfigError: the target has no name by which a later bridge would find it.
        """
        check_pattern(pattern)
        async with self._changing(pattern):
            if pattern in self._unwanted:
                await self._take_down(pattern)
            if pattern in self._served:
                raise RouteConflictError(f"{pattern!r} is bound already", hint="unbind it first")
            await self._wiring.registry.catch_up()
            for card in self._wiring.registry.cards():
                for topic in card.topics:
                    if card.agent != _name(pattern) and overlap(pattern, topic.name):
                        raise RouteConflictError(f"{pattern!r} overlaps {topic.name!r} of {card.agent}")
            record = {
                "pattern": pattern,
                "method": method,
                "slots": slots,
                "description": description,
                "target": await asyncio.to_thread(_reference, target),
            }
            before, self._recorded[pattern] = self._recorded.get(pattern), record
            try:
                # First of all: what there is of it is known to the next bridge.
                await self._record(record)
                await self._open(record, target)
            except BaseException:
                with contextlib.suppress(SquadronError):
                    await self._take_down(pattern)
                    if before is not None:
                        # One that waits for its target goes on waiting.
                        self._recorded[pattern] = before
                        await self._record(before)
                raise

    def _changing(self, pattern: str) -> asyncio.Lock:
        return self._locks.setdefault(pattern, asyncio.Lock())

    async def _record(self, record: dict[str, Any]) -> None:
        key = self._wiring.ports.subjects.record("binding", _name(record["pattern"]))
        await self._wiring.records.append(key, json.dumps(record).encode())

    async def _put_right(self) -> None:
        """Try again what failed: to serve what is recorded, or to leave nothing of what is to go."""
        if self.to_restore:
            self.to_restore = False
            self._lost.update(self._recorded)
        for pattern in list(self._recorded):
            # Who binds or unbinds it may wait for a last call; the others can't.
            if not (changing := self._changing(pattern)).locked():
                async with changing:
                    await self._put_one_right(pattern)

    async def _put_one_right(self, pattern: str) -> None:
        try:
            if pattern in self._unwanted:
                await self._take_down(pattern)
            elif (record := self._recorded.get(pattern)) is not None:
                await self._keep(record)
        except Exception as error:
            # The actor is not there yet, say, or its class is gone; the others must be served all the same.
            if self._told.get(pattern) != (told := summary_of(error)):
                self._told[pattern] = told
                self._log.error("binding.not_restored", pattern=pattern, error=told)
        else:
            self._told.pop(pattern, None)

    async def _keep(self, record: dict[str, Any]) -> None:
        """Serve what is recorded, and make anew what was lost of it, but its card: the bridge writes all cards."""
        served = self._served.get(pattern := record["pattern"])
        if pattern in self._lost:
            await self._record(record)
            if served is not None:
                await self._wiring.ports.queue.declare(served.mailbox)
            self._lost.discard(pattern)
        if served is None:
            await self._open(record, await asyncio.to_thread(_found, record["target"]))

    async def _open(self, record: dict[str, Any], target: Any) -> None:
        pattern, name = record["pattern"], _name(record["pattern"])
        wiring = self._wiring
        mailbox = Mailbox(name, (pattern,), wiring.settings.lease_s)
        await wiring.ports.queue.declare(mailbox)
        topic = SemanticTopic(name=pattern, description=record["description"])
        turns = Turns(name, [CallHandler(topic, target, record["method"])], wiring.caller)
        pump = Pump(wiring.ports.queue, mailbox, turns.run, slots=record["slots"])
        try:
            await turns.start()
            card = AgentCard(agent=name, description=record["description"], topics=(topic,))
            await wiring.registry.advertise(card)
            await wiring.registry.renew(name, STAND_IN)
            # Last: once it pulls nothing fails any more, which would have to wait for its calls.
            await pump.start()
        except BaseException:
            await turns.aclose()
            raise
        self._served[pattern] = _Served(record, mailbox, turns, pump)

    async def _keep_presence(self) -> None:
        """As long as the bridge lives, its bindings are served."""
        while True:
            with contextlib.suppress(SquadronError):
                for pattern in list(self._served):
                    await self._wiring.registry.renew(_name(pattern), STAND_IN)
            await asyncio.sleep(self._wiring.registry.beat_s)

    async def _keep_right(self) -> None:
        while True:
            await asyncio.sleep(self._wiring.registry.beat_s)
            await self._put_right()

    def routes(self) -> list[dict[str, Any]]:
        """What is bound."""
        return [
            {"pattern": pattern, "mailbox": each.mailbox.name, "kind": f"ray:{each.record['method']}"}
            for pattern, each in self._served.items()
        ]

    async def unbind(self, pattern: str) -> None:
        """Stop serving `pattern`; who binds it meanwhile waits until what runs has ended."""
        async with self._changing(pattern):
            if pattern not in self._recorded:
                bound = ", ".join(self._recorded) or "none"
                raise ConfigError(f"{pattern!r} is not bound", hint=f"bound are {bound}")
            await self._take_down(pattern)

    async def _take_down(self, pattern: str) -> None:
        """Leave nothing of a binding. Its record goes last: until then the next bridge knows of its mailbox.

        Raises:
            BusUnavailableError: something is left; it is tried again.
        """
        self._unwanted.add(pattern)
        wiring, name = self._wiring, _name(pattern)
        await wiring.registry.withdraw(name)
        if (served := self._served.pop(pattern, None)) is not None:
            await served.pump.drain(RUN_TIMEOUT_S)
            await served.turns.aclose()
        await wiring.ports.queue.remove(name)
        await wiring.records.erase(wiring.ports.subjects.record("binding", name))
        del self._recorded[pattern]
        self._unwanted.discard(pattern)

    async def aclose(self) -> None:
        """Hand back what runs. May be called twice."""
        await cancel_all(self._tasks)
        for each in self._served.values():
            await each.pump.drain(5.0)


def _name(pattern: str) -> str:
    """A binding's mailbox: a digest, because a pattern may be longer than a token and hold other characters."""
    return f"bound-{hashlib.sha256(pattern.encode()).hexdigest()[:16]}"


def _reference(target: Any) -> dict[str, str]:
    """Where a target is found again: names, and no pickle, which whoever writes the registry could have run."""
    if isinstance(target, DeploymentHandle):
        return {"kind": "serve", "app": target.app_name, "name": target.deployment_name}
    if isinstance(target, ActorHandle):
        for each in ray.util.list_named_actors(all_namespaces=True):
            with contextlib.suppress(ValueError):
                if ray.get_actor(each["name"], namespace=each["namespace"]) == target:
                    return {"kind": "actor", "namespace": each["namespace"], "name": each["name"]}
    raise ConfigError(
        f"{target!r} can't be bound: a bridge that is restarted would not find it",
        hint='give the actor a name: Class.options(name="…", lifetime="detached").remote()',
    )


def _found(reference: Any) -> Any:
    """The target that a record names.

    Raises:
        ConfigError: it names none; a record of an earlier release is a pickle, which is not read.
        ValueError, ray.serve.exceptions.RayServeException: there is none of this name any more.
    """
    match reference:
        case {"kind": "serve", "app": str(app), "name": str(name)}:
            return serve.get_deployment_handle(name, app)
        case {"kind": "actor", "namespace": str(namespace), "name": str(name)}:
            return ray.get_actor(name, namespace=namespace)
    raise ConfigError("the record of a binding names no target", hint="bind it anew")
