"""What was searched for in this terminal a moment ago: an ask of what it found tells how well it fitted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from squadron.config import Settings
from squadron.runtime.errors import SquadronError

if TYPE_CHECKING:
    from squadron.client.squad import Squad
    from squadron.runtime.wire.outcome import Outcome

#: How long after a search an ask counts as led to by it, in seconds, and how many searches are remembered.
SOON_S, KEPT = 600.0, 8
#: Ends that say that a topic was the wrong one, or bad; what was refused or cancelled says nothing.
_BADLY = frozenset({"failed", "dead_lettered", "timed_out"})


def _place(settings: Settings) -> Path:
    # Two terminals look for different things.
    who = hashlib.sha256(f"{os.getsid(0)} {settings.nats_url} {settings.env}".encode()).hexdigest()[:16]
    return settings.home / "searches" / f"{who}.json"


def _known(settings: Settings) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        told = json.loads(_place(settings).read_text())
        return [each for each in told if time.time() - each["at"] < SOON_S]
    return []


def remember(settings: Settings, intent: str, found: Sequence[str]) -> None:
    """Keep in mind what a search found, in a file that only this user can read."""
    from squadron.bridge.daemons import private_dir, write_private

    now = [*_known(settings), {"at": time.time(), "intent": intent, "found": list(found)}][-KEPT:]
    # A search is of use without it.
    with contextlib.suppress(OSError, SquadronError):
        private_dir(_place(settings).parent)
        write_private(_place(settings), json.dumps(now, ensure_ascii=False))


async def teach(squad: Squad, settings: Settings, topic: str, outcome: Outcome) -> None:
    """Say how a topic went that the last search which found it led to, if there was one."""
    from squadron.runtime.wire.subjects import matches

    if not outcome.ok and outcome.kind not in _BADLY:
        return
    led = [each for each in _known(settings) if any(matches(found, topic) for found in each["found"])]
    if led:
        with contextlib.suppress(SquadronError):
            await squad.prefer(led[-1]["intent"], topic, good=outcome.ok)
