"""The servers of an environment: started if nothing runs, stopped by who started them."""

from __future__ import annotations

import socket
import sys

from squadron.actors.credentials import forget_keys
from squadron.config import Settings


def starts_here(settings: Settings) -> bool:
    """Whether bringing the environment up would start a local Ray cluster that doesn't run yet."""
    from squadron.bridge.serve import local

    ray = sys.modules.get("ray")
    joined = ray is not None and bool(ray.is_initialized())
    return settings.ray_address is None and not joined and local.find(settings.home) is None


def start_cluster(settings: Settings) -> None:
    """Join or start Ray, and start the bridge on it.

    Raises:
        ClusterUnavailableError: Ray or the bridge did not come up.
    """
    from squadron.bridge.serve import cluster

    cluster.join(settings)
    cluster.start_bridge(settings)


def is_orphaned(ray_address: str) -> bool:
    """Whether a bridge that still answers has lost its local Ray cluster, as after a kill of its control store.

    The bridge's process ends about a minute later. Clusters that are not on loopback are not looked at: a
    client need not reach them.
    """
    host, _, port = ray_address.rpartition(":")
    if not host.startswith("127."):
        return False
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except OSError:
        return True
    return False


def stop_local(settings: Settings) -> list[str]:
    """Stop the local servers of `settings.home`; returns what was stopped."""
    from squadron.bridge.jetstream import embedded
    from squadron.bridge.serve import local

    running = local.find(settings.home)
    ray = sys.modules.get("ray")
    joined = ray.get_runtime_context().gcs_address if ray is not None and ray.is_initialized() else ""
    if ray is not None and running is not None and joined == running.address:
        # A process that is still connected would be ended with its cluster.
        ray.shutdown()
    forget_keys(settings.home)
    stopped = []
    if local.stop(settings.home):
        stopped.append("ray")
    if settings.nats_url is None and embedded.stop(settings.home):
        stopped.append("nats")
    return stopped
