"""A payload of 50 MB through a real squad: over the object store to a replica on Ray, and back."""

from __future__ import annotations

import hashlib

from squadron import Agent, Squad, topic
from squadron.runtime.wire.outcome import Rejected

MB = 1024 * 1024


class Scribe(Agent):
    """Copies texts."""

    @topic("scribe.copy")
    async def copy(self, text: str) -> dict[str, str]:
        """Give a text back, with its digest."""
        return {"text": text, "digest": hashlib.sha256(text.encode()).hexdigest()}


async def test_fifty_megabytes_go_to_a_replica_and_come_back(squad: Squad) -> None:
    await squad.deploy(Scribe)
    text = "".join(f"{number:09} " for number in range(5 * MB))
    copy = (await squad.ask("scribe.copy", {"text": text}, within_s=60)).unwrap()
    assert copy["text"] == text
    assert copy["digest"] == hashlib.sha256(text.encode()).hexdigest()
    assert (await squad.ask("scribe.copy", {"text": "small"}, within_s=60)).unwrap()["text"] == "small"


async def test_more_than_the_hard_limit_is_rejected_at_the_door(squad: Squad) -> None:
    await squad.deploy(Scribe)
    outcome = await squad.ask("scribe.copy", {"text": "x" * 128 * MB}, within_s=60)
    assert isinstance(outcome, Rejected)
    assert outcome.details["field"] == "content"
