"""Ray: bringing an environment up on a cluster, and declaring its agents to Ray Serve."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from squadron.bridge.serve import local
from squadron.bridge.serve.ahead import stand_in
from squadron.bridge.serve.declaration import SEPARATOR, applications, placed, states_of
from squadron.bridge.serve.ray_nodes import free_of_nodes
from squadron.bridge.serve.resource_waits import ResourceWaits
from squadron.bridge.serve.seat_faults import SeatFaults, with_faults
from squadron.config import Settings
from squadron.runtime.errors import ClusterUnavailableError, DeployError
from squadron.runtime.wire.deployment import AgentState, Deployment

#: How long the bridge may take to answer after it was created, in seconds: imports, connect, streams.
BRIDGE_WITHIN_S = 60.0
#: Memory of an idle replica, in bytes (measured, Ray 2.60): 170 MB, of which 130 MB are its own.
REPLICA_BYTES = 170_000_000


def join(settings: Settings, *, on_start: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """Connect this process to Ray: the one it is in, the user's, or the local one (started if needed).

    Args:
        on_start: Called right before this call starts a local cluster.

    Returns:
        What undoes it: leaves the cluster, unless this process was in it before, and the environment as it was.

    Raises:
        ClusterUnavailableError: it can't be reached or started; says what to do.
    """
    if _is_joined():
        return lambda: None
    found, before = None, dict(os.environ)
    if settings.ray_address is None:
        extra_env = settings.passed_on() | {"SQUADRON_HOME": str(settings.home)}
        found = local.ensure(settings.home, extra_env=extra_env, on_start=on_start)
        os.environ.update(local.environment(found))
    try:
        _connect(found, settings.ray_address)
    except BaseException:
        _leave(before, _changes(before))
        raise
    return functools.partial(_leave, before, _changes(before))


def _changes(before: Mapping[str, str]) -> set[str]:
    """The environment variables that are others than `before`; Ray has its own view of `breakpoint()`, too."""
    return {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}


def _connect(found: local.LocalRay | None, ray_address: str | None) -> None:
    stand_in()
    import ray

    if found:
        _read_environment_again()

    # It warns on a user's terminal that it can't handle SIGTERM from a thread, which nobody wants it to.
    logging.getLogger("ray").setLevel(logging.ERROR)
    address = found.address if found else ray_address
    try:
        _probe(address or "")
        ray.init(
            address=address,
            namespace="squadron",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        told, hint = " ".join(str(error).split()), "check RAY_ADDRESS and RAY_AUTH_MODE"
        if told.startswith("Version mismatch"):
            hint = "use its Ray and its Python here; clients need neither (`squadron ask`, `Squad.connect`)"
        raise ClusterUnavailableError(f"Ray at {address} can't be joined: {told}", hint=hint) from None


def _leave(before: Mapping[str, str], names: set[str]) -> None:
    """Leave Ray, and what was set in the environment for it as it was `before`."""
    import ray

    ray.shutdown()
    for name in names:
        if name in before:
            os.environ[name] = before[name]
        else:
            os.environ.pop(name, None)
    if names:
        _read_environment_again()


def _probe(address: str) -> None:
    """Fail early where nobody listens; Ray itself tries for a minute, with log lines of its own.

    Raises:
        OSError: nobody listens.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=5.0).close()


def _read_environment_again() -> None:
    """Ray reads its environment when it is imported, which a notebook may have done long before.

    Without this `ray.init` would hang: the cluster refuses a client without its token, silently.
    """
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # a C extension

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    enabled = os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
    ray_constants.ENABLE_RAY_CLUSTER = not ray_constants.IS_WINDOWS_OR_OSX if enabled is None else enabled == "1"


def _is_joined() -> bool:
    """Whether this process is connected to Ray already; never imports it for that."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def joined_address() -> str:
    """Address of the cluster that this process is in; empty if it is in none."""
    return str(sys.modules["ray"].get_runtime_context().gcs_address) if _is_joined() else ""


def dashboard_url() -> str:
    """Address of the cluster's dashboard, or the empty string if it has none."""
    import ray

    address = ray._private.worker._global_node.webui_url if ray._private.worker._global_node else ""
    return f"http://{address}" if address else ""


def load_bridge() -> None:
    """Import Ray and what the bridge is; what it reads of the environment then is read again on joining."""
    stand_in()
    import squadron.bridge.serve.bridge_actor  # noqa: F401


def start_bridge(settings: Settings) -> None:
    """Start Ray Serve and the environment's bridge, unless they run; the process must have joined.

    Raises:
        ClusterUnavailableError: the bridge did not come up.
    """
    import ray
    from ray import serve

    from squadron.bridge.serve.bridge_actor import BridgeActor
    from squadron.bridge.serve.ray_names import NAMESPACE, bridge_name

    # It writes an INFO line to a user's terminal.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # Each is a process that imports Ray for seconds: both at once. The bridge makes do without Serve for a while.
    beside = concurrent.futures.ThreadPoolExecutor(1, "serve")
    serving = beside.submit(serve.start, proxy_location="Disabled")
    try:
        bridge = BridgeActor.options(  # type: ignore[attr-defined]  # made by ray.remote
            name=bridge_name(settings.env),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_concurrency=1000,
            num_cpus=0,
        ).remote(settings, dashboard_url())
        serving.result()
        ray.get(bridge.ping.remote(), timeout=BRIDGE_WITHIN_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise ClusterUnavailableError(
            f"the bridge of environment {settings.env!r} did not start: {error}",
            hint="can the cluster's nodes reach NATS, and is squadron-ray installed on them?",
        ) from None


class ServeReplicas:
    """`Replicas` on Ray Serve: one declared application per agent type, or per group of them.

    Other applications on the cluster are left as they are: a declaration names all declared applications,
    so ours are merged with whatever else is declared.
    """

    def __init__(self, environment: str) -> None:
        self._environment = environment
        #: What processes of groups have told of agents that could not start there.
        self.seat_faults = SeatFaults()
        self._waits = ResourceWaits()

    async def apply(self, deployments: Sequence[Deployment]) -> None:
        """Declare exactly these agents."""
        self.seat_faults.keep(deployments)
        self._waits.keep(deployments)
        await asyncio.to_thread(self._apply, list(deployments))

    def _apply(self, deployments: list[Deployment]) -> None:
        import ray
        from pydantic import ValidationError
        from ray.serve.schema import ServeDeploySchema

        client = _client()
        foreign = [config for name, config in self._declared(client).items() if not self._is_ours(name)]
        ours = applications(self._environment, deployments)
        try:
            config = ServeDeploySchema.model_validate(
                {"proxy_location": "Disabled", "applications": [*foreign, *ours]}
            )
            client.deploy_apps(config)
        except (ValidationError, ray.exceptions.RayError) as error:
            raise DeployError(f"Ray Serve refused the declaration: {error}") from None

    def _is_ours(self, application: str) -> bool:
        return application.partition(SEPARATOR)[0] == self._environment

    @staticmethod
    def _declared(client: Any) -> dict[str, dict[str, Any]]:
        applications = client.get_serve_details()["applications"]
        return {
            name: details["deployed_app_config"]
            for name, details in applications.items()
            if details.get("deployed_app_config")
        }

    async def states(self, wanted: Sequence[Deployment]) -> dict[str, AgentState]:
        """How each agent is doing, by name, and whether it runs by another declaration than is wanted."""
        return await asyncio.to_thread(self._states, list(wanted))

    async def capacity(self) -> int:
        """How many replicas the cluster's memory holds."""
        return await asyncio.to_thread(self._capacity)

    @staticmethod
    def _capacity() -> int:
        import ray

        return int(ray.cluster_resources().get("memory", 0) // REPLICA_BYTES)  # type: ignore[no-untyped-call]

    async def placed(self) -> dict[str, dict[str, int]]:
        """How many replicas of each agent run on each node, by Ray's id of it."""
        return placed(await asyncio.to_thread(self._ours))

    def _ours(self) -> dict[str, dict[str, Any]]:
        details = _client().get_serve_details()["applications"]
        return {name: each for name, each in details.items() if self._is_ours(name)}

    def _states(self, wanted: Sequence[Deployment] = ()) -> dict[str, AgentState]:
        states = states_of(self._environment, self._ours(), wanted)
        for each in (version for agent in wanted for version in agent.versions):
            state = states.get(each.known_as)
            if state is not None and each.weight is None and (faults := self.seat_faults.of(each)):
                states[each.known_as] = with_faults(state, faults)
            elif state is not None and state.running < state.target:
                told = self._waits.told(each, state, free_of_nodes())
                states[each.known_as] = state.model_copy(update={"message": f"{told} {state.message}".strip()})
            else:
                self._waits.over(each)
        return states


def _client() -> Any:
    """Serve's own client of this process; started anew if Serve was shut down behind our back."""
    from ray import serve
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        serve.start(proxy_location="Disabled")
        client = _get_global_client()
    return client


def kill_bridge(environment: str) -> None:
    """Take the bridge away from the cluster that this process is in, if it is there, and the process is."""
    if not _is_joined():
        return
    import ray

    from squadron.bridge.serve.ray_names import NAMESPACE, archivist_name, bridge_name, shelf_name

    # The bridge first: it would bring the archivist back.
    for name in (bridge_name(environment), archivist_name(environment), shelf_name(environment)):
        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def stop_environment(settings: Settings, *, within_s: float = 30.0) -> None:
    """On a user's own cluster: take our applications and the bridge away; the rest stays.

    Raises:
        ClusterUnavailableError: the cluster can't be reached.
    """
    join(settings)
    replicas = ServeReplicas(settings.env)
    kill_bridge(settings.env)
    replicas._apply([])
    give_up_at = time.monotonic() + within_s
    while replicas._states() and time.monotonic() < give_up_at:
        time.sleep(0.2)
