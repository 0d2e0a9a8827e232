"""Metrics of the bridge actor: heard from replicas, looked up, and shown at a port, over NATS, and by Ray."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import uuid
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from squadron.bridge.audit.history import behind
from squadron.bridge.daemons import private_dir, write_private
from squadron.bridge.health.probes import Probes
from squadron.bridge.jetstream.storage import oldest_at, storage
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.metrics.census import Census
from squadron.bridge.metrics.counting import Countings
from squadron.bridge.metrics.exposition import ScrapePort, text_of
from squadron.bridge.metrics.figures import Figures
from squadron.bridge.metrics.gauges import Gauges
from squadron.bridge.serve.ray_metrics import RayMetrics
from squadron.runtime.errors import ConfigError
from squadron.runtime.logs import get_logger
from squadron.runtime.retries import summary_of


class Showcase:
    """The census of this environment, and all the ways in which it is shown."""

    def __init__(self, wiring: Wiring, agents: Callable[[], Awaitable[list[dict[str, Any]]]]) -> None:
        """Make one; it does nothing before `open`. `agents` tells of them as the bridge's `status` does."""
        self._wiring = wiring
        connection, subjects = wiring.connection, wiring.ports.subjects
        look_up = Gauges(
            wiring.ports,
            agents,
            lambda: storage(connection, StreamNames(subjects.environment)),
            lambda agent, topics: oldest_at(connection, subjects, agent, topics),
            version("squadron-ray"),
            lambda: behind(connection, StreamNames(subjects.environment)),
        )
        self.census = Census(wiring.ports, wiring.records, look_up, heartbeat_s=wiring.settings.heartbeat_s)
        #: What the bridge serves itself: Ray actors that are bound to topics.
        self._bound, self._id = Countings(), f"bridge-{uuid.uuid4().hex[:8]}"
        wiring.ports.observers.add(self._bound)
        self.endpoint: ScrapePort | None = None
        self._log = get_logger("squadron.metrics")

    async def open(self) -> None:
        """Take up what an earlier bridge counted, and begin to show.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        await self.census.load()
        self.census.each_beat(RayMetrics(self.census.figures()))
        self.census.each_beat(self._take_bound)
        if self._wiring.settings.metrics != "off":
            self._open_port()

    def _take_bound(self, _: Figures) -> None:
        for agent, told in self._bound.told().items():
            self.census.take(agent, self._id, told)

    def _open_port(self) -> None:
        settings = self._wiring.settings
        try:
            probes = Probes(self._wiring.connection, self._wiring.ports.subjects)
            answer = probes.over_wsgi(asyncio.get_running_loop())
            self.endpoint = ScrapePort(settings.metrics, self.census.figures, answer)
            if settings.ray_address is None:
                folder = private_dir(settings.home / "metrics")
                target = {"targets": [self.endpoint.address], "labels": {"environment": settings.env}}
                write_private(folder / f"{settings.env}.json", json.dumps([target]))
        except (OSError, ConfigError) as error:
            # Agents are of use without it.
            self._log.error("metrics.no_port", address=settings.metrics, error=summary_of(error))

    async def metrics(self) -> dict[str, Any]:
        """The call of that name: all figures as text, compressed, since it has to fit into one message."""
        text = text_of(self.census.figures())
        return {"url": self.url, "gzip": base64.b64encode(gzip.compress(text.encode())).decode()}

    @property
    def url(self) -> str:
        """Where it is scraped; empty if nowhere."""
        return self.endpoint.url if self.endpoint is not None else ""
