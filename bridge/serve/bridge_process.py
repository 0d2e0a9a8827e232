"""What runs in the process of the bridge: it keeps streams, agents and their credentials, and the map."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from squadron.actors.thinking.embedding import open_embedder
from squadron.bridge.auth.minting import AGENT_KEYS, AgentKeys
from squadron.bridge.control.control import Bridge
from squadron.bridge.control.describing import not_deployed
from squadron.bridge.control.finding import Finder, TrackRecord
from squadron.bridge.health.release import release
from squadron.bridge.jetstream.link.at_home import OF_ALL, as_bridge, authority_of, has_authority
from squadron.bridge.jetstream.own_streams import own_names
from squadron.bridge.jetstream.queue import subjects_held
from squadron.bridge.jetstream.stream_configs import StreamNames, Streams
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.otel.exporters import lines_of
from squadron.bridge.seal_rings import AgentRings
from squadron.bridge.serve.archivist_actor import ArchivistKeeper
from squadron.bridge.serve.bindings import Bindings
from squadron.bridge.serve.cluster import ServeReplicas
from squadron.bridge.serve.login import Enrolled
from squadron.bridge.serve.offers import TakenOffers, peers_of
from squadron.bridge.serve.ray_nodes import nodes
from squadron.bridge.serve.showcase import Showcase
from squadron.config import Settings
from squadron.runtime.background import spawn
from squadron.runtime.errors import UntrustedError
from squadron.runtime.logs import configure_logs, get_logger
from squadron.runtime.registry.ranker import TopicKey
from squadron.runtime.trust.ring_handing import hand_ring
from squadron.runtime.trust.sealing import SealKey
from squadron.runtime.wire.deployment import Deployment
from squadron.runtime.wire.envelope import AgentIdentity

#: An agent with so many tasks for each replica, waiting and running, counts as busy where topics are ranked.
TASKS_EACH = 16


class BridgeProcess:
    """A bridge at work, once it has begun."""

    async def begin(self, settings: Settings, dashboard_url: str) -> None:
        """Connect, and take up all that this environment has."""
        self._settings = settings = as_bridge(settings)
        self._log, self.replicas = get_logger("squadron.bridge"), ServeReplicas(settings.env)
        identity = AgentIdentity(id=f"bridge-{os.getpid()}", type="bridge")
        configure_logs(settings.log_level, *lines_of(identity, settings.env))
        self.wiring = await Wiring.open(settings, identity, create=True)
        names, apart = StreamNames(settings.env), settings.nats_own == OF_ALL
        streams = Streams(self.wiring.connection, names, settings.stream_replicas, apart=apart)

        async def keep_streams() -> Sequence[str]:
            lost = await streams.watch()
            if lost:
                self.bindings.to_restore = True
                self._showcase.census.store_all()
                await self._archivist.restore()
            return lost

        async def agents() -> list[dict[str, Any]]:
            # Each half minute at most: two hundred agents asleep are not worth hundreds of questions to NATS.
            return await self.bridge.agents(asks_all=False)

        self._showcase = Showcase(self.wiring, agents)
        await self._showcase.open()
        facts = {
            "dashboard": dashboard_url,
            "ray": ray.get_runtime_context().gcs_address,
            "nats": self.wiring.connection.server,
            "metrics": self._showcase.url,
            "release": release(),
        }
        self.bindings, self._rings = Bindings(self.wiring), AgentRings(settings)
        self._archivist, self._finder = ArchivistKeeper(self.wiring.connection, settings), await self._search()
        self.bridge = Bridge(
            self.wiring.ports,
            self.wiring.registry,
            self.wiring.records,
            self.replicas,
            self._held,
            keep_streams,
            facts,
            lease_s=settings.lease_s,
            seal_key=self._rings.seal_key,
            endings=self._showcase.census.versions_of,
            uses=lambda: self._showcase.census.uses,
            more={
                "metrics": self._showcase.metrics,
                "rotate_key": self._rotate_key,
                "nodes": partial(nodes, self.replicas.placed),
                "offer": TakenOffers(self.wiring.ports.clock, lambda *asked: self.bridge.alter(*asked)).take,
                **self._finder.verbs,
            },
        )
        await self.bridge.start()
        await self._showcase.census.start()
        await self.bindings.start()
        self._finding = spawn(self._finder.keep(), "vectors", lasting=True)
        self._archiving = spawn(self._archivist.keep(), "archivist", lasting=True)

    async def _held(self) -> Mapping[str, int]:
        """What can be run, by subject."""
        env, connection = self._settings.env, self.wiring.connection
        runnable = [f"agents.{env}.{kind}.>" for kind in ("task", "ticket")]
        names, is_apart = StreamNames(env), self._settings.nats_own == OF_ALL
        lines = await own_names(connection, names, "ticket") if is_apart else []
        found = [await subjects_held(connection, each, runnable) for each in (names.tasks, *lines)]
        return {subject: count for each in found for subject, count in each.items()}

    async def _search(self) -> Finder:
        # In a thread: the SDK of a provider takes seconds to load on a busy machine.
        here, embedder = self.wiring, await asyncio.to_thread(open_embedder, self._settings.embeddings)
        learns = self._settings.learn == "yes"
        serving = (here.ports, here.registry, here.records, embedder, self._busy)
        finder = Finder(*serving, learns=learns, record=self._record)
        # Before anybody can teach it: what it learns of a topic is stored with all that it knows of it.
        await finder.load()
        return finder

    def _record(self, key: TopicKey) -> TrackRecord:
        return TrackRecord(*self._showcase.census.tasks_of(key.agent, key.name))

    def _busy(self, agent: str) -> float:
        held, present = self.bridge.backlogs().get(agent, {}).get("held"), self.wiring.registry.replicas(agent)
        # Those of a canary have a part of their own of what is held.
        slots = sum(not each.canary for each in present.values())
        return (held or 0) / max(1, TASKS_EACH * slots)

    async def admit(self, agent: str, user: str, groups: Sequence[str]) -> Enrolled:
        """What a replica connects with: a credential of its agent, where users are made here.

        Args:
            user: public key that the replica has made.
            groups: of durable events that it is a member of.

        Raises:
            UntrustedError: no such agent is deployed, or a group is not the agent's.
        """
        settings = self._settings
        # Read anew each time: keys are rotated.
        if (file := settings.agent_keys or self._home_keys()) is None:
            return Enrolled(settings)
        entry = await self.wiring.records.last(self.wiring.ports.subjects.record("deployment", agent))
        if entry is None or not entry.data:
            raise UntrustedError(f"no agent {agent!r} is deployed")
        deployment = Deployment.model_validate_json(entry.data)
        keys = await asyncio.to_thread(AgentKeys.load, file)
        ordered = deployment.ordered_by != ""
        peers = peers_of(deployment)
        token = keys.mint(user, agent, ordered=ordered, serves=deployment.patterns, peers=peers, groups=groups)
        self._log.info("replica.admitted", agent=agent, user=user, groups=list(groups))
        shown = replace(settings, nats_user_credentials=None, nats_nkey_seed_file=None, agent_keys=None)
        return Enrolled(shown, token, keys.life_s)

    def _home_keys(self) -> Path | None:
        if not has_authority(self._settings):
            return None
        return authority_of(self._settings.home) / self._settings.env / AGENT_KEYS

    async def hand_ring(self, agent: str, to: str) -> dict[str, Any]:
        """For replicas: the key ring of their agent, sealed for a public key of theirs."""
        ring = await asyncio.to_thread(self._rings.ring, agent)
        return await asyncio.to_thread(hand_ring, ring, agent, SealKey.parse(to))

    async def _rotate_key(self, agent: str) -> dict[str, Any]:
        card = next((each for each in self.wiring.registry.cards() if each.agent == agent), None)
        if card is None:
            raise not_deployed(agent, (each.agent for each in self.wiring.registry.cards()))
        ring = await asyncio.to_thread(self._rings.rotate, agent)
        await self.wiring.registry.advertise(card.with_key(str(ring.public)))
        return {"agent": agent, "key": ring.public.kid}
