"""Looking for a topic: the bridge knows meanings and what was learned; where there is none, words decide here."""

from __future__ import annotations

import json
import uuid

from squadron.runtime.errors import BusUnavailableError, UntrustedError
from squadron.runtime.registry.registry import Registry
from squadron.runtime.store.operating import operator
from squadron.runtime.store.port_set import Ports
from squadron.runtime.trust.may_say import only
from squadron.runtime.wire.topics import ScoredTopic

#: How long the bridge may take for a search, in seconds, before words decide here.
SEARCH_WITHIN_S = 2.0


async def search(
    ports: Ports, registry: Registry, intent: str, *, most: int = 8, least: float = 0.0
) -> list[ScoredTopic]:
    """The served topics that fit an intent best, best first, as the bridge finds them."""
    call_id = uuid.uuid4().hex
    asked = {"callId": call_id, "by": operator(), "intent": intent, "most": most, "least": least}
    try:
        subject, data = ports.subjects.control("search"), json.dumps(asked).encode()
        note = await ports.bus.exchange(subject, data, within_s=SEARCH_WITHIN_S)
        if ports.guard is not None:
            await ports.guard.admit("answer", None, note.data, note.headers, at=None, may=only("bridge"))
        answer = json.loads(note.data)
        if ports.guard is not None and (answer.get("verb"), answer.get("callId")) != ("search", call_id):
            raise UntrustedError("it answers another call")
        hits = answer["ok"]["found"]
        cards = {(topic.name, agent): topic for topic, agent in registry.offered()} if hits else {}
        return [
            ScoredTopic(topic=topic, agent=hit["agent"], score=hit["score"], why=hit["why"])
            for hit in hits
            if (topic := cards.get((hit["name"], hit["agent"]))) is not None
        ]
    except (BusUnavailableError, UntrustedError, ValueError, KeyError, TypeError):
        # No bridge, an older one, or one that may not be asked.
        return registry.discover(intent, most=most, least=least)
