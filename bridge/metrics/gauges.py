"""What is looked up for metrics: backlogs, replicas, dead letters, streams, questions to people."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from squadron.bridge.metrics.figures import Gauge
from squadron.runtime.asking.question_records import read_questions
from squadron.runtime.store.port_set import Ports


class Gauges:
    """Looks up everything that is not counted. Costs some questions to NATS and one to Serve for each agent."""

    def __init__(
        self,
        ports: Ports,
        agents: Callable[[], Awaitable[list[dict[str, Any]]]],
        stored: Callable[[], Awaitable[tuple[Mapping[str, tuple[int, int, int]], int, int]]],
        oldest_at: Callable[[str, Sequence[str]], Awaitable[float | None]],
        version: str,
        audit: Callable[[], Awaitable[tuple[int, int] | None]],
    ) -> None:
        """Make one.

        Args:
            agents: as the bridge's `status` tells of them.
            stored: bytes, messages and most bytes of each stream, then bytes of all of the account's and the most
                of those; 0 where there is no limit.
            oldest_at: when an agent's oldest task that is there yet was stored, by its name and topics.
            audit: how many messages the audit trail has yet to take up, and its gaps; None if there is none.
        """
        self._ports, self._agents, self._stored = ports, agents, stored
        self._oldest_at, self._version, self._audit = oldest_at, version, audit

    async def __call__(self) -> list[Gauge]:
        """All of them, as they are now.

        Raises:
            BusUnavailableError: the server can't be reached.
        """
        ports, gauges = self._ports, list[Gauge]()
        # Mostly there are none, and then nobody is asked for each agent's.
        buried = await ports.dead.count(ports.subjects.dead_of())
        for agent in await self._agents():
            name = agent["agent"]
            dead = buried and await ports.dead.count(ports.subjects.dead_of(name))
            gauges += [("squadron_dead_letters", (name,), dead), *await self._of_agent(agent)]
        streams, used, most = await self._stored()
        for stream, (held, messages, limit) in streams.items():
            gauges += [
                ("squadron_stream_bytes", (stream,), held),
                ("squadron_stream_messages", (stream,), messages),
            ]
            if limit:
                gauges.append(("squadron_stream_limit_bytes", (stream,), limit))
        gauges.append(("squadron_store_bytes", (), used))
        if most:
            gauges.append(("squadron_store_limit_bytes", (), most))
        if (audit := await self._audit()) is not None:
            gauges += [("squadron_audit_lag_messages", (), audit[0]), ("squadron_audit_gaps_total", (), audit[1])]
        questions = await read_questions(ports)
        waiting = sum(each.is_open(ports.clock) for each in questions.values())
        return [
            *gauges,
            ("squadron_people_waiting", (), waiting),
            ("squadron_lite_topics", (), await ports.lite.keys()),
            ("squadron_sampled_timestamp_seconds", (), ports.clock.time()),
            ("squadron_build_info", (self._version,), 1),
        ]

    async def _of_agent(self, agent: Mapping[str, Any]) -> list[Gauge]:
        name = agent["agent"]
        gauges: list[Gauge] = [
            ("squadron_replicas", (name, "running"), agent["running"]),
            ("squadron_replicas", (name, "target"), agent["target"]),
        ]
        # The bridge tells None for what it does not know.
        held = {state: agent[state] for state in ("waiting", "taken") if agent[state] is not None}
        if sum(held.values()) and (since := await self._oldest_at(name, agent["topics"])) is not None:
            age_s = max(0.0, self._ports.clock.time() - since)
            gauges.append(("squadron_mailbox_oldest_seconds", (name,), age_s))
        return gauges + [("squadron_mailbox_tasks", (name, state), count) for state, count in held.items()]
