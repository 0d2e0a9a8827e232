"""The bridge as a Serve application, for whoever declares all that runs on a cluster to Ray Serve: KubeRay, say.

    applications:
      - name: squadron
        import_path: squadron.bridge.serve.keeper:app
        route_prefix: null

Its settings are those of the environment that Ray's workers have. What `squadron up` does on a cluster, this does.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve

from squadron.config import Settings

#: How often Serve asks whether the bridge answers, in seconds. One that is being restarted is back sooner than
#: three times that, after which this is started anew.
CHECK_S = 10.0


@serve.deployment(
    name="bridge",
    num_replicas=1,
    ray_actor_options={"num_cpus": 0},
    health_check_period_s=CHECK_S,
    health_check_timeout_s=CHECK_S,
)
class BridgeKeeper:
    """Starts the environment's bridge, and sees to it that there is one. It takes no requests."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits it
        from squadron.bridge.serve import cluster

        self._settings = Settings.load()
        await asyncio.to_thread(cluster.start_bridge, self._settings)

    async def check_health(self) -> None:
        """Ask the bridge whether it is there.

        Raises:
            RayError: it does not answer.
            ValueError: there is none.
        """
        import ray

        from squadron.bridge.serve.ray_names import NAMESPACE, bridge_name

        await (await asyncio.to_thread(ray.get_actor, bridge_name(self._settings.env), NAMESPACE)).ping.remote()

    async def __call__(self) -> dict[str, Any]:
        """Serve wants a callable; nobody needs to call it."""
        return {"environment": self._settings.env}


app = BridgeKeeper.bind()  # type: ignore[attr-defined]  # made by serve.deployment
