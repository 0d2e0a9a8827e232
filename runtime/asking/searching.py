"""Looking for a topic: the bridge knows meanings and what was learned; where there is none, words decide here."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

from squadron.runtime.asking.bridge_answer import read_answer
from squadron.runtime.errors import BusUnavailableError, InvalidMessageError, SquadronError, UntrustedError
from squadron.runtime.registry.registry import Registry
from squadron.runtime.store.operating import operator
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.may_say import only
from squadron.runtime.wire.topics import ScoredTopic

#: How long the bridge may take for a search, in seconds, before words decide here.
SEARCH_WITHIN_S = 2.0


class Experience(NamedTuple):
    """An intent that led to a topic, and whether it went well."""

    intent: str
    topic: str
    good: bool


async def search(
    ports: Ports, registry: Registry, intent: str, *, most: int = 8, least: float | None = None
) -> list[ScoredTopic]:
    """The served topics that fit an intent best, best first, as the bridge finds them.

    Args:
        least: nothing is offered if the best one scores less; None is where most of what does not fit lies below.
    """
    try:
        hits = (await _ask_bridge(ports, "search", intent=intent, most=most, least=least))["found"]
        return [
            ScoredTopic(topic=topic, agent=hit["agent"], score=hit["score"], why=hit["why"])
            for hit in hits
            if (topic := registry.servers(hit["name"]).get(hit["agent"])) is not None
        ]
    except (BusUnavailableError, UntrustedError, InvalidMessageError, AttributeError, KeyError, TypeError):
        # No bridge, an older one, or one that may not be asked.
        return registry.discover(intent, most=most, least=least)


async def teach(ports: Ports, lessons: Iterable[Experience]) -> None:
    """Have the bridge learn what came of intents, if there is one that learns."""
    for each in lessons:
        with contextlib.suppress(SquadronError, ValueError, KeyError, TypeError):
            await _ask_bridge(ports, "prefer", intent=each.intent, topic=each.topic, good=each.good)


async def _ask_bridge(ports: Ports, verb: str, **arguments: Any) -> dict[str, Any]:
    """The bridge's answer to one call, asked once.

    Raises:
        BusUnavailableError: no answer in time.
        UntrustedError: it is not the bridge's.
        ValueError, KeyError, TypeError: it is an error, or none that is known here.
    """
    call_id = uuid.uuid4().hex
    data = json.dumps({"callId": call_id, "by": operator(), **arguments}).encode()
    note = await ports.bus.exchange(ports.subjects.control(verb), data, within_s=SEARCH_WITHIN_S)
    if ports.guard is not None:
        await ports.guard.admit("answer", None, note.data, note.headers, at=None, may=only("bridge"))
    answer = read_answer(note.data)
    if ports.guard is not None and (answer.get("verb"), answer.get("callId")) != (verb, call_id):
        raise UntrustedError("it answers another call")
    told: dict[str, Any] = answer["ok"]
    return told
