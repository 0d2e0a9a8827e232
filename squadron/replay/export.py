"""How a run becomes a recording: read from its log, without secrets, and tried."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from squadron.actors.runs.entries import ENTRIES, Asking, Entry, Sending
from squadron.actors.runs.log import entries_of, read
from squadron.actors.runs.shelf import Runs, RunView
from squadron.replay.player import play
from squadron.replay.recording import Header, RecordedRun, Recording, dumped
from squadron.runtime.redact import scrub_all
from squadron.runtime.store.port_set import Ports


async def export(ports: Ports, id: str, *, env: str, code: str) -> Recording:
    """A run, and the runs of the agents that it called, as far as their logs are still there.

    Secrets are struck out. What models were asked is computed anew, and kept where it is what they were asked.

    Args:
        id: as `squad.runs.list` has it, or its beginning.
        code: the version of Squadron that this is.

    Raises:
        ConfigError: there is none, or more than one.
        BusUnavailableError: the server can't be reached.
    """
    view = await Runs(ports).show(id)
    runs = [await record(ports, run, agent) for run, agent in dict.fromkeys(_runs(view))]
    info, at = view.info, ports.clock.time()
    header = Header(run=info.run, agent=info.agent, topic=info.topic, env=env, exported_at=at, code=code)
    return Recording(header=header, runs=tuple(runs))


def _runs(view: RunView) -> Iterator[tuple[str, str]]:
    yield view.info.run, view.info.agent
    for round in view.rounds:
        for call in round.calls:
            for inner in call.runs:
                yield from _runs(inner)


async def record(ports: Ports, run: str, agent: str) -> RecordedRun:
    """One run of an agent as its log has it, without secrets; what others wrote there is left out.

    Raises:
        BusUnavailableError: the server can't be reached.
    """
    messages = [entries_of(message) async for _, message in read(ports, ports.subjects.run(run), by=agent)]
    recorded = RecordedRun(run=run, messages=tuple(entries for entries in messages if entries))
    # In a thread: it has a loop of its own, in which time is turned.
    return await asyncio.to_thread(scrubbed, recorded)


def scrubbed(recorded: RecordedRun) -> RecordedRun:
    """The run without secrets, with what its models were asked.

    Digests are over what was asked, secrets included: where they were right, they are made anew over what is left.
    """
    if not recorded.entries:
        return recorded
    replay = play(recorded)
    content = [dumped(message) for message in recorded.messages]
    clean = [scrub_all(message) for message in content]
    if clean == content:
        return RecordedRun(run=recorded.run, messages=recorded.messages, requests=replay.requests)
    messages = tuple(ENTRIES.validate_python(message) for message in clean)
    again = play(RecordedRun(run=recorded.run, messages=messages), digests=False)
    digests = iter(again.decided)
    right = replay.entries
    renewed, count = list[tuple[Entry, ...]](), 0
    for message in messages:
        entries = list[Entry]()
        for entry in message:
            if isinstance(entry, Sending) or (isinstance(entry, Asking) and not entry.covers):
                now = next(digests, entry)
                entries.append(_renewed(entry, now) if count < right else entry)
            else:
                entries.append(entry)
            count += 1
        renewed.append(tuple(entries))
    return RecordedRun(run=recorded.run, messages=tuple(renewed), requests=again.requests)


def _renewed(entry: Entry, now: Entry) -> Entry:
    """The entry with the digests of what the code asks now."""
    if isinstance(entry, Asking) and isinstance(now, Asking):
        return entry.model_copy(update={"digest": now.digest})
    if isinstance(entry, Sending) and isinstance(now, Sending):
        calls = zip(entry.calls, now.calls, strict=True)
        renewed = tuple(old.model_copy(update={"digest": new.digest}) for old, new in calls)
        return entry.model_copy(update={"calls": renewed})
    return entry
