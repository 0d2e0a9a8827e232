"""How many replicas the tasks held ask for, as the autoscaler is told."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from squadron.bridge.control.describing import served_by
from squadron.runtime.logs import get_logger
from squadron.runtime.retries import summary_of
from squadron.runtime.wire.deployment import Deployment

#: Tasks held, None if not known; a pinned number of replicas, if any; a number that changes with use, if any.
Figures = dict[str, int | None]

#: Figures that stay as they are are handed out again after so many seconds, so that whoever waits for others finds
#: out that the bridge is gone.
AGAIN_AFTER_S = 5.0

#: What was seen last stands for so long, in seconds, while no more can be seen; then it is not known.
STANDS_S = 10.0

#: How often backlogs are sampled for the autoscaler, in seconds: Serve's control loop ticks every 0.1 s, and
#: a sample is a handful of API calls, and where principals are apart some more for each ordered agent.
SAMPLE_S = 0.25

_log = get_logger("squadron.bridge")


class LatestFigures:
    """The newest figures of all; who has them already waits for others, instead of asking four times a second."""

    def __init__(self) -> None:
        #: Whether the last sample still counts.
        self.known = False
        self._figures: dict[str, Figures] = {}
        self._id, self._changed = uuid.uuid4().hex, asyncio.Event()
        #: What the last ones were made of, and they.
        self._made_of: list[Mapping[str, Any]] = []
        self._made: dict[str, Figures] = {}

    def made_of(
        self, deployments: Mapping[str, Deployment], held: Mapping[str, int], uses: Mapping[str, int]
    ) -> dict[str, Figures]:
        """As `figures_of`, made anew only if something changed: those of hundreds of agents take milliseconds."""
        of: list[Mapping[str, Any]] = [dict(deployments), held, dict(uses)]
        if of != self._made_of:
            self._made_of, self._made = of, figures_of(deployments, held, uses)
        return self._made

    async def keep(self, sample: Callable[[], Awaitable[None]], figures: Callable[[], dict[str, Figures]]) -> None:
        """Tell `figures` after each `sample`, for ever."""
        stands_until = 0.0
        while True:
            try:
                await sample()
                stands_until = time.monotonic() + STANDS_S
            except Exception as error:
                _log.info("bridge.no_sample", error=summary_of(error))
            self.known = time.monotonic() < stands_until
            self.tell({name: each if self.known else each | {"held": None} for name, each in figures().items()})
            await asyncio.sleep(SAMPLE_S)

    def tell(self, figures: dict[str, Figures]) -> None:
        """These are the figures now."""
        if figures != self._figures:
            self._figures, self._id = figures, uuid.uuid4().hex
            self._changed.set()
            self._changed = asyncio.Event()

    async def after(self, seen: str) -> tuple[str, dict[str, Figures]]:
        """The figures and their id, as soon as they are others than those of the id `seen`."""
        if seen == self._id:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_AFTER_S):
                    await self._changed.wait()
        return self._id, self._figures


def runnable(
    held: Mapping[str, int], deployments: Mapping[str, Deployment], parked: Mapping[str, int]
) -> dict[str, int]:
    """How many tasks of each agent could be run now, by what mailboxes hold by subject."""
    counts = dict.fromkeys(deployments, 0)
    for subject, count in held.items():
        for name in served_by(subject, deployments):
            counts[name] += count
    # What waits for people needs no replica.
    return {name: max(0, count - parked.get(name, 0)) for name, count in counts.items()}


def figures_of(
    deployments: Mapping[str, Deployment],
    held: Mapping[str, int],
    uses: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Figures]:
    """What each version of an agent holds, and each group by its application's name: there `held` is the processes
    it needs.

    Args:
        uses: a number of each agent that has ended tasks; it changes with more of them.
    """
    figures: dict[str, Figures] = {}
    groups: dict[str, list[Deployment]] = {}
    for name, agent in deployments.items():
        for each in agent.versions:
            scale = each.running_scale
            pinned = scale.minimum if scale.pinned else None
            figures[each.known_as] = {"held": part_of(agent, each, held.get(name)), "pinned": pinned} | _used(
                uses.get(name, 0)
            )
        if agent.group:
            groups.setdefault(agent.application, []).append(agent)
    for name, members in groups.items():
        needed = [_needed(each, part_of(each, each, held.get(each.agent))) for each in members]
        known = [each for each in needed if each is not None]
        is_pinned = all(each.scale.pinned for each in members)
        figures[name] = {
            # As long as nothing is known of one of them, there may be none too few.
            "held": max(known) if len(known) == len(needed) else None,
            "pinned": max(each.scale.minimum for each in members) if is_pinned else None,
            **_used(sum(uses.get(each.agent, 0) for each in members)),
        }
    return figures


def _used(uses: int) -> Figures:
    # Left out where there is nothing to say, as an older release does.
    return {"used": uses} if uses else {}


def part_of(agent: Deployment, version: Deployment, held: int | None) -> int | None:
    """How many of the tasks that an agent's mailbox holds are one version's, by the share of its canary."""
    if held is None or agent.canary is None or agent.canary.weight is None:
        return held
    if version.weight is None:
        # Whatever is held, it is the stable version that takes it out.
        return held and max(1, math.ceil(held * (100 - agent.canary.weight) / 100))
    return math.ceil(held * version.weight / 100)


def _needed(deployment: Deployment, held: int | None) -> int | None:
    if deployment.scale.pinned:
        # Serve keeps so many, whatever is needed.
        return 0
    return held and min(math.ceil(held / deployment.slots), deployment.scale.maximum)
