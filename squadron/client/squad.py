"""`Squad`: the one object people hold. It composes settings, bus, bridge and cluster."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from squadron.bridge.control.bridge_calls import Control
from squadron.bridge.jetstream.link.at_home import as_user
from squadron.bridge.jetstream.stream_configs import StreamNames
from squadron.bridge.jetstream.wiring import Wiring
from squadron.client.opening import Opening
from squadron.client.remote_servers import RemoteServers
from squadron.config import Settings
from squadron.runtime.errors import (
    BridgeUnavailableError,
    ClusterUnavailableError,
    SquadronError,
)
from squadron.runtime.logs import get_logger
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.servers import CONNECT, Servers, coming_up, is_coming_up, is_orphaned

if TYPE_CHECKING:
    from squadron.bridge.audit.history import AuditTrail

#: How long it may take, when a squad is closed, to take away what it deployed, in seconds.
UNDEPLOY_WITHIN_S = 5.0
#: How often it is looked whether what comes up is there, in seconds.
UP_LOOK_S = 0.25

_log = get_logger("squadron.squad")


class Squad(RemoteServers):
    """A connection to one environment of agents: deploy them, ask them, watch them.

        async with Squad.up() as squad:
            await squad.deploy(Analyst)
            outcome = await squad.ask("analysis.sentiment", {"text": "I love it"})

    In a plain script the same calls without `await`: `with Squad.up() as squad: squad.ask(…)`.
    """

    def __init__(self, wiring: Wiring, settings: Settings, servers: Servers | None = None) -> None:
        super().__init__(wiring)
        self._servers = servers or Servers(settings)
        self._nats = wiring

    # --- opening and closing -------------------------------------------------------------------------

    @classmethod
    def up(
        cls,
        settings: Settings | None = None,
        *,
        on_step: Callable[[str], object] | None = None,
        **overrides: Any,
    ) -> Opening:
        """Bring the environment up, or join it if it runs.

        With no `NATS_URL` and no `RAY_ADDRESS` this starts a local NATS server and a local Ray cluster,
        which stop again when the squad that started them is closed.

        Args:
            settings: where the servers are; from the environment by default.
            on_step: called with what begins now, `start Ray` say; it may be `print`. By default the logger
                `squadron` of Python's own `logging` is told, at INFO.
            overrides: single fields of `Settings`.

        Raises:
            ConfigError: a setting is wrong.
            BusUnavailableError: NATS can't be reached.
            ClusterUnavailableError: Ray can't be reached or started.
        """

        async def open_squad() -> Squad:
            chosen = settings or Settings.load(**overrides)
            with coming_up(chosen):
                return await cls._bring_up(chosen, Servers(chosen, on_step))

        return Opening(open_squad)

    @classmethod
    async def _bring_up(cls, settings: Settings, servers: Servers) -> Squad:
        try:
            await servers.start_nats()
            servers.step(CONNECT)
            wiring = await _open_nats(settings)
        except BaseException:
            await servers.stop()
            raise
        squad = cls(wiring, settings, servers)
        try:
            bridge = await squad._control.bridge()
            if bridge is None or is_orphaned(bridge["ray"]):
                await servers.start_cluster()
                if await squad._control.bridge() is None:
                    raise ClusterUnavailableError(
                        f"the Ray cluster has a bridge for {settings.env!r} that is on another NATS server",
                        hint="use that server's NATS_URL, or another SQUADRON_ENV",
                    )
            else:
                await servers.join_cluster()
        except BaseException:
            await squad.aclose()
            raise
        return squad

    @classmethod
    def connect(cls, settings: Settings | None = None, **overrides: Any) -> Opening:
        """Join an environment that runs; needs NATS only, never Ray.

        One that somebody of this home brings up at the moment is waited for.

        Raises:
            ConfigError: nothing runs here; says what to do.
            BridgeUnavailableError: NATS is there, but no bridge answers.
        """

        async def open_squad() -> Squad:
            chosen = settings or Settings.load(**overrides)
            is_told = False
            while True:
                # Before: it may be up by the time that this has failed.
                was_coming_up = is_coming_up(chosen)
                try:
                    return await cls._join(chosen)
                except SquadronError as error:
                    if not (was_coming_up or is_coming_up(chosen)):
                        raise
                    if not is_told:
                        is_told = True
                        _log.warning("squad.coming_up", environment=chosen.env, error=str(error))
                await asyncio.sleep(UP_LOOK_S)

        return Opening(open_squad)

    @classmethod
    async def _join(cls, settings: Settings) -> Squad:
        wiring = await Wiring.open(as_user(settings), _identity())
        squad = cls(wiring, settings)
        try:
            # A bridge that was just killed is back in two seconds; agents serve on without it.
            if not wiring.registry.cards() and await squad._control.bridge() is None:
                raise BridgeUnavailableError(
                    f"environment {settings.env!r} has no bridge", hint="start it with `squadron up`"
                )
        except BaseException:
            await squad.aclose()
            raise
        return squad

    async def aclose(self) -> None:
        """Leave; local servers that this squad started are stopped. May be called twice.

        Calls that wait end with `SquadClosedError`, iterations end. In a process that was forked it does nothing.

        Raises:
            ClusterUnavailableError: a process of the local Ray can't be killed; all else is closed.
        """
        if self._closed or self._forked:
            return
        control, self._closed = self._control, True
        async with contextlib.AsyncExitStack() as rest:
            # What comes later is done whatever happens before, a cancellation included.
            rest.push_async_callback(self._servers.stop)
            rest.push_async_callback(self._place.aclose)
            for heard in list(self._heard):
                rest.push_async_callback(heard.aclose)
            if self._servers.started:
                # Else they would come back with the next start, as agents of a running environment should.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(UNDEPLOY_WITHIN_S), asyncio.TaskGroup() as undeploying:
                        for agent in self._deployed:
                            undeploying.create_task(_undeploy(control, agent))

    def _repr_html_(self) -> str:
        """In a notebook: which environment this is, and its console if one runs on this machine."""
        from html import escape

        from squadron.views.console_place import ConsolePlace

        console = ConsolePlace.find(self.settings)
        url = escape(console.url if console else "")
        link = f'<a href="{url}">console</a>' if url else "<code>squadron console</code> serves its page"
        return f"Squad <b>{escape(self.settings.env)}</b> · {link}"

    @property
    def audit(self) -> AuditTrail:
        """What happened in this environment, if it is audited: query, verify, export."""
        from squadron.bridge.audit.history import AuditTrail

        home = self._wiring.settings.home
        return AuditTrail(self._nats.connection, StreamNames(self.settings.env), home)

    @property
    def started_here(self) -> bool:
        """Whether this squad started local servers, which stop when it is closed."""
        return bool(self._servers.started)

    @property
    def brought_up(self) -> bool:
        """Whether something of the environment did not run before: a local server, or the bridge."""
        return self._servers.brought_bridge or self.started_here

    def keep_running(self) -> None:
        """Leave the servers this squad started running when it is closed; `squadron down` stops them."""
        self._servers.started.clear()


async def _undeploy(control: Control, agent: str) -> None:
    with contextlib.suppress(SquadronError):
        await control.call("undeploy", agent=agent)


def _identity() -> AgentIdentity:
    # Not the host's name: it would be in every message, for whoever gets one.
    return AgentIdentity(id=f"client-{uuid.uuid4().hex[:12]}", type="client")


async def _open_nats(settings: Settings) -> Wiring:
    """Have the streams, audited as the settings say, and a place beside them with the rights of this process."""
    from squadron.bridge.audit.switch import switch_audit

    keeper = as_user(settings, "bridge")
    wiring = await Wiring.open(keeper, _identity(), create=True)
    try:
        await switch_audit(wiring)
    except BaseException:
        await wiring.aclose()
        raise
    own = as_user(settings)
    if own == keeper:
        return wiring
    await wiring.aclose()
    return await Wiring.open(own, _identity())
