"""The nodes of the cluster, as Ray has them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any


async def nodes(placed: Callable[[], Awaitable[Mapping[str, Mapping[str, int]]]]) -> dict[str, Any]:
    """Each node: its name, address, whether it lives, what it has, how much of that is free, and what runs there.

    Args:
        placed: tells how many replicas of each agent run on each node, by its id.
    """
    return {"nodes": await asyncio.to_thread(_look, await placed())}


def free_of_nodes() -> list[dict[str, float]]:
    """What each living node has left."""
    from ray._private.state import available_resources_per_node

    return list(available_resources_per_node().values())  # type: ignore[no-untyped-call]


def _look(placed: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    here = ray.get_runtime_context().get_node_id()
    return [
        {
            "id": each["NodeID"],
            "name": each["NodeManagerHostname"],
            "address": each["NodeManagerAddress"],
            "alive": each["Alive"],
            "head": "node:__internal_head__" in each["Resources"],
            "has": _plain(each["Resources"]),
            "free": _plain(free.get(each["NodeID"], {})),
            "bridge": each["NodeID"] == here,
            "replicas": dict(placed.get(each["NodeID"], {})),
        }
        for each in ray.nodes()  # type: ignore[no-untyped-call]
    ]


def _plain(resources: dict[str, float]) -> dict[str, float]:
    """What people ask for; not the names by which Ray marks its nodes."""
    return {name: round(amount, 3) for name, amount in sorted(resources.items()) if not name.startswith("node:")}
