"""Runs cases for the tests: packs each agent where its project is, and serves it where nothing of that is.

One process that has imported squadron alone, and forks: for each way of a case a child packs in the folder of the
project; then another child, in an empty folder, unpacks and serves all that was packed. What a case does to a
process (imports, threads, a wrong exit) so ends with it, and a fresh one costs milliseconds.

Names of cases come on standard input, one a line; for each goes out a line of JSON.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import json
import linecache
import os
import pickle
import re
import select
import signal
import site
import sys
import textwrap
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema_rs

from squadron.actors.agent import Agent, AgentSpec
from squadron.bridge.packing.code import Code, pack, unpack
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import InvalidAgentError, InvalidSubjectError, MessageTooLargeError
from squadron.runtime.ports.queue import Delivery
from squadron.runtime.running.event_turns import EventTurns
from squadron.runtime.running.pump import Pump
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.groups import EventGroup
from squadron.runtime.wire.outcome import Result
from squadron.runtime.wire.subjects import matches
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from tests.contract.conftest import Peer, Replica, memory_world
from tests.corpus.case import PREAMBLE, Ask, Case, Way
from tests.corpus.cases import CASES

#: A child that takes longer hangs; the slowest needs a second.
HANGS_S = 60.0
#: How long a task may take, in seconds; none should need more than a fraction.
WITHIN_S = 30.0
#: No lease ends here, however busy the machine is: what is seen is what the agent does.
LEASE_S = 60.0


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a child of its own, or `{"broke": …}`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                returned = function(*arguments)
            except BaseException:
                returned = {"broke": traceback.format_exc(limit=-4)}
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(returned, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data, until = b"", time.monotonic() + HANGS_S
        while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            part = os.read(pipe.fileno(), 1 << 20)
            if not part:
                break
            data += part
        else:
            os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return pickle.loads(data) if data else {"broke": "it ended at once, or hung"}


class Project:
    """The files of one case, in a folder of its own or among the installed packages."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        source = textwrap.dedent(case.source).lstrip("\n")
        imports = re.search(r"^(from|import) squadron", source, re.MULTILINE)
        self.source = source if imports else PREAMBLE + source
        texts = {name: textwrap.dedent(text).lstrip("\n") for name, text in case.files.items()}
        self.texts = {**texts, case.at: self.source}

    def write(self) -> None:
        for name, text in self.texts.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="surrogatepass")

    def remove(self) -> None:
        for name in self.texts:
            (self.folder / name).unlink()

    def load(self, way: Way) -> dict[str, Any]:
        """Run the source the way it is; returns its names."""
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        path = self.folder / self.case.at
        if way in ("module", "installed"):
            parts = Path(self.case.at).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            return vars(importlib.import_module(name))
        main = sys.modules["__main__"] = ModuleType("__main__")
        if way == "script":
            main.__file__ = str(path)
            cells = {str(path): self.source}
        else:
            cells = {f"<cell {n}>": cell for n, cell in enumerate(self.source.split("# %%"))}
        for name, text in cells.items():
            # As a notebook does, so that `inspect.getsource` finds it.
            linecache.cache[name] = (len(text), None, text.splitlines(True), name)
            exec(compile(text, name, "exec", dont_inherit=True), main.__dict__)
        return main.__dict__

    def pack(self, way: Way) -> dict[str, Any]:
        """As a deploy does."""
        try:
            agent = eval(self.case.agent, self.load(way))
            code, blob = pack(agent)
        except (InvalidAgentError, InvalidSubjectError, MessageTooLargeError) as error:
            return {"refused": str(error)}
        return {"code": code.to_dict(), "blob": blob}


def serve_all(asks: tuple[Ask, ...], packed: dict[Way, dict[str, Any]], empty: Path) -> dict[str, Any]:
    """Unpack and serve the agent of each way, one after the other."""
    os.chdir(empty)
    sys.modules["__main__"] = ModuleType("__main__")
    served = {}
    # The installed one comes last: what travels by value has to do without what is installed for it.
    for way in sorted(packed, key=lambda way: way == "installed"):
        if way == "installed":
            sys.path.insert(0, site.getusersitepackages())
        served[way] = _served(asks, packed[way])
    return served


def _served(asks: tuple[Ask, ...], packed: dict[str, Any]) -> dict[str, Any]:
    try:
        return asyncio.run(_serve(asks, unpack(Code(**packed["code"]), packed["blob"])))
    except BaseException:
        return {"broke": traceback.format_exc(limit=-6)}


async def _serve(asks: tuple[Ask, ...], agent_class: type[Agent]) -> dict[str, Any]:
    card = AgentSpec.of(agent_class).card()
    # As it stands in the registry, where others read it, in other languages, too.
    told = card.model_dump_json()
    json.loads(told, parse_constant=_no_json)
    card = AgentCard.model_validate_json(told)
    problems = [f"{topic.name}: {why}" for topic in card.topics if (why := _not_a_schema(topic))]
    agent = agent_class()
    await agent.on_start()
    world = await memory_world()
    replica = Replica(await world.join("replica"), agent, lease_s=LEASE_S)
    await replica.start()
    pumps, handled = await _hear(replica)
    client = await world.join("client")
    streams = {spec.topic.name for spec in replica.spec.topics if spec.chunk is not None}
    ended: list[dict[str, Any]] = []
    last: Any = None
    for each in asks:
        if each.event:
            handled.clear()
            await client.caller.sender.publish_durable(each.topic, each.content)
            await asyncio.wait_for(handled.wait(), WITHIN_S)
            ended.append({"ends": "result", "gives": None, "says": "", "chunks": []})
            continue
        fitting = [topic for topic in card.topics if not each.topic or matches(topic.name, each.topic)]
        topic = min(fitting, key=lambda topic: topic.is_pattern, default=None)
        content = each.content(last) if inspect.isfunction(each.content) else each.content
        name = each.topic or fitting[0].name
        if each.raw:
            handle = await _put_raw(client, name, content)
        else:
            handle = await client.caller.submit(name, content, AskOptions(within_s=WITHIN_S))
        chunks = [chunk async for chunk in handle.chunks()]
        outcome = await handle.outcome()
        entry = await client.lite.last(handle.reply_to)
        if entry is not None:
            json.loads(entry.data, parse_constant=_no_json)
        last = outcome.data if isinstance(outcome, Result) else None
        ended.append({"ends": outcome.kind, "gives": last, "says": outcome.reason, "chunks": chunks})
        if isinstance(outcome, Result) and topic is not None:
            problems += _unlike(topic, last, chunks if topic.name in streams else [])
    for pump in (*pumps, replica.pump):
        await pump.aclose()
    await replica.turns.aclose()
    await agent.on_stop()
    return {"agent": card.agent, "topics": [t.name for t in card.topics], "asks": ended, "problems": problems}


async def _hear(replica: Replica) -> tuple[list[Pump], asyncio.Event]:
    """The pumps of an agent's durable event handlers, and the news that one has handled an event."""
    pumps, handled, peer = [], asyncio.Event(), replica.peer
    for method, mark in replica.spec.durable_events:
        group = EventGroup(f"{replica.spec.name}.{method}", mark.pattern, "first", LEASE_S)
        handler = getattr(replica.agent, method)
        options = {"retries": mark.retries, "run_timeout_s": mark.run_timeout_s}
        turns = EventTurns(group.name, handler, peer.ports, **options)

        async def run(delivery: Delivery, turns: EventTurns = turns) -> None:
            await turns.run(delivery)
            handled.set()

        pumps.append(Pump(peer.events, group, run, slots=1))
        await pumps[-1].start()
    return pumps, handled


async def _put_raw(client: Peer, topic: str, content: str) -> Handle:
    """Into the mailbox goes JSON as a client in another language may write it, which checks nothing."""
    id = os.urandom(16).hex()
    reply_to = client.subjects.lite(client.caller.ports.identity.id, id)
    message = AgentMessage.new("task", client.caller.ports.identity, "CONTENT", id=id, reply_to=reply_to)
    data = message.encode().replace(b'"CONTENT"', content.encode())
    await client.queue.put(client.subjects.task(topic), data, msg_id=id)
    ticket = {"task": id, "topic": topic, "replyTo": reply_to, "deadline": int((time.time() + WITHIN_S) * 1000)}
    return client.caller.resume(json.dumps(ticket))


def _no_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _not_a_schema(topic: SemanticTopic) -> str:
    for schema in (topic.input_schema, topic.output_schema):
        try:
            jsonschema_rs.validator_for(schema)
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            return str(error)
    return ""


def _unlike(topic: SemanticTopic, data: Any, chunks: list[Any]) -> list[str]:
    """What left the agent and does not fit what it advertises: for a stream, a text or a list of its chunks."""
    schema = topic.output_schema
    one = {**schema.get("items", schema), "$defs": schema.get("$defs", {})}
    held = [(schema, data), *((one, chunk) for chunk in chunks)]
    return [
        f"{topic.name} sent {str(sent)[:200]}, not {wanted}"
        for wanted, sent in held
        if not jsonschema_rs.validator_for(wanted).is_valid(sent)
    ]


def run(case: Case, home: Path, number: int) -> dict[str, Any]:
    """One case in all its ways."""
    installed = Path(site.getusersitepackages())
    packed: dict[Way, dict[str, Any]] = {}
    for way in case.ways:
        project = Project(case, installed if way == "installed" else home / f"project{number}")
        project.write()
        packed[way] = in_child(project.pack, way)
    ready = {way: each for way, each in packed.items() if "code" in each}
    served = in_child(serve_all, case.asks, ready, home / "empty") if ready else {}
    if "broke" in served:
        served = dict.fromkeys(ready, served)
    if "installed" in case.ways:
        Project(case, installed).remove()
    return {
        way: {"by_name": bool(each["code"]["import_path"]), **served[way]} if way in ready else each
        for way, each in packed.items()
    }


def main() -> None:
    """Answer until standard input ends."""
    home = Path(sys.argv[1])
    (home / "empty").mkdir()
    installed = Path(site.getusersitepackages())
    installed.mkdir(parents=True)
    # The root of this repository is no place that a replica can import from.
    sys.path[:] = [path for path in sys.path if Path(path or ".") not in (installed, Path(__file__).parents[2])]
    cases = {case.name: case for case in CASES}
    answers, asked = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0))
    # What handlers print goes elsewhere.
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # A collection in a child would touch, and so copy, all that it shares with this process.
    gc.freeze()
    gc.disable()
    for number, line in enumerate(asked):
        print(json.dumps(run(cases[line.strip()], home, number)), file=answers, flush=True)


if __name__ == "__main__":
    main()
