"""The nodes of the cluster, as Ray has them."""

from __future__ import annotations

import asyncio
from typing import Any


async def nodes() -> dict[str, Any]:
    """Each node: its name, address, whether it lives, what it has, and how much of that is free."""
    return {"nodes": await asyncio.to_thread(_look)}


def free_of_nodes() -> list[dict[str, float]]:
    """What each living node has left."""
    from ray._private.state import available_resources_per_node

    return list(available_resources_per_node().values())  # type: ignore[no-untyped-call]


def _look() -> list[dict[str, Any]]:
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    return [
        {
            "id": each["NodeID"],
            "name": each["NodeManagerHostname"],
            "address": each["NodeManagerAddress"],
            "alive": each["Alive"],
            "head": "node:__internal_head__" in each["Resources"],
            "has": _plain(each["Resources"]),
            "free": _plain(free.get(each["NodeID"], {})),
        }
        for each in ray.nodes()  # type: ignore[no-untyped-call]
    ]


def _plain(resources: dict[str, float]) -> dict[str, float]:
    """What people ask for; not the names by which Ray marks its nodes."""
    return {name: round(amount, 3) for name, amount in sorted(resources.items()) if not name.startswith("node:")}
