"""The servers of an environment: started if nothing runs, stopped by who started them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from squadron.actors.thinking.credentials import forget_keys
from squadron.bridge.daemons import is_marked, marked, private_dir, write_private
from squadron.config import Settings
from squadron.runtime.errors import ClusterUnavailableError, ConfigError, SquadronError
from squadron.runtime.secret import FILE

#: Folder in the home with the secrets of its settings, as long as its cluster runs.
_SECRETS = "secrets"
#: Folder in the home that tells which environments are being brought up.
_UP = "up"
#: What is told while a squad comes up, and when what was started is stopped.
START_NATS, CONNECT, START_RAY, JOIN_RAY = "start NATS", "connect", "start Ray", "join Ray"
START_BRIDGE, STOP = "start bridge", "stop"
#: How often it is looked whether a start has ended, in seconds.
_START_LOOK_S = 0.02

T = TypeVar("T")

#: By the program's own logging, which says nothing of it unless it is asked to: a script's output is its own.
_log = logging.getLogger("squadron")


class Servers:
    """The local servers of one environment, as a squad sees them: it starts what is missing, and stops just that.

    What can't be interrupted, an import of Ray above all, is done by another program, which can be killed. So
    whoever is cancelled on the way leaves nothing behind, and does not wait.
    """

    def __init__(self, settings: Settings, on_step: Callable[[str], object] | None = None) -> None:
        """Make one; it does nothing yet.

        Args:
            on_step: called on the loop with what begins now; by default it is logged.
        """
        self.settings, self._on_step = settings, on_step or _log.info
        #: What was started here: "nats", "ray".
        self.started = set[str]()
        #: Whether the bridge did not run, be Ray and NATS the user's own or not.
        self.brought_bridge = False
        self._leave: Callable[[], None] | None = None
        self._bridge_on = ""

    async def start_nats(self) -> None:
        """Start the embedded server, if it is wanted and does not run.

        Raises:
            ConfigError: it is not installed, or the home can't be written.
            BusUnavailableError: it did not come up.
        """
        from squadron.bridge.jetstream.link import embedded

        if self.settings.nats_url is not None:
            return
        await _in_thread(self._let_in)
        given_up, loop = threading.Event(), asyncio.get_running_loop()

        def starts() -> None:
            self.started.add("nats")
            loop.call_soon_threadsafe(self.step, START_NATS)

        start = functools.partial(
            embedded.ensure,
            self.settings.home,
            on_start=starts,
            given_up=given_up.is_set,
            trusted=self.settings.nats_server_sha256,
        )
        await _in_thread(start, give_up=given_up.set)

    def step(self, name: str) -> None:
        """Tell what begins now."""
        self._on_step(name)

    def _let_in(self) -> None:
        """Have keys for an environment that the home's authority, if it has one, does not know yet; rights as this
        release has them; and certificates that are good for a while yet.
        """
        from squadron.bridge.auth.authority import Authority
        from squadron.bridge.jetstream.link import embedded
        from squadron.bridge.jetstream.link.at_home import embedded_tls, has_authority

        home, environment = self.settings.home, self.settings.env
        if embedded_tls(home)[0]:
            from squadron.bridge.auth.certificates import renew_embedded

            if renew_embedded(home):
                embedded.reload(home)
        if not has_authority(self.settings):
            return
        present = Authority.load(home)
        if environment not in present.environments or not present.is_current:
            with Authority.open(home) as authority:
                authority.admit(environment)
            embedded.reload(home)

    async def start_cluster(self) -> None:
        """Start Ray, unless there is one, and the bridge on it, and join it as `join_cluster` does.

        Raises:
            ClusterUnavailableError: Ray or the bridge did not come up.
            ConfigError: a secret that was given as it is would have to travel to a cluster of the user's own.
        """
        from squadron.bridge.serve import cluster, local

        self._bridge_on = cluster.joined_address()
        local_ray = await _in_thread(functools.partial(local.find, self.settings.home))
        self.step(JOIN_RAY if self.settings.ray_address or self._bridge_on or local_ray else START_RAY)
        await self._start_in_child()
        self.brought_bridge = True
        await self.join_cluster()

    async def join_cluster(self) -> None:
        """Have a program that has imported Ray join the cluster of the bridge, if it can be found from here.

        Raises:
            ClusterUnavailableError: it can't be reached.
        """
        if "ray" not in sys.modules:
            return
        from squadron.bridge.serve import cluster, local

        if self.settings.ray_address or local.find(self.settings.home):
            if not cluster.joined_address():
                self.step(JOIN_RAY)
            await _in_thread(functools.partial(cluster.join, self.settings), keep=self._remember)

    def _remember(self, leave: Callable[[], None]) -> None:
        self._leave = leave

    async def _start_in_child(self) -> None:
        settings = _travelling(self.settings)
        with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as log:
            child = _spawn((settings, self._bridge_on), told, log)
            try:
                joined = False
                while child.poll() is None:
                    await asyncio.sleep(_START_LOOK_S)
                    if not joined and (joined := "joined" in _lines(told)):
                        self.step(START_BRIDGE)
            finally:
                child.kill()
                child.wait()
                lines = _lines(told)
                if "starts" in lines:
                    self.started.add("ray")
            for line in lines:
                if isinstance(line, dict):
                    raise SquadronError.from_dict(line)
            if child.returncode != 0:
                log.seek(0)
                last = b"".join(log.readlines()[-15:]).decode(errors="replace")
                reason = f"the start of Ray and the bridge ended with {child.returncode}\n{last}"
                raise ClusterUnavailableError(reason, hint="see `squadron doctor`")

    async def stop(self) -> None:
        """Stop what was started here, and leave Ray if it was joined here. May be called twice.

        Raises:
            ClusterUnavailableError: a process of Ray can't be killed; the others are.
        """
        try:
            if self.started:
                self.step(STOP)
        finally:
            # Whoever is told may raise: what it prints to may be closed.
            await _in_thread(self._stop)

    def _stop(self) -> None:
        with contextlib.ExitStack() as rest:
            # What comes later is done whatever happens before.
            if "nats" in self.started:
                from squadron.bridge.jetstream.link import embedded

                rest.callback(embedded.stop, self.settings.home)
            if "ray" in self.started:
                rest.callback(_stop_ray, self.settings)
            elif "nats" in self.started and self._bridge_on:
                # On the program's own Ray: it would look for its server for ever.
                from squadron.bridge.serve import cluster

                rest.callback(cluster.kill_bridge, self.settings.env)
            if self._leave is not None:
                rest.callback(self._leave)
            self._leave = None
            self.started.clear()


def _lines(told: IO[bytes]) -> list[Any]:
    """What the child has told until now; where it goes on to write is left as it is."""
    data = os.pread(told.fileno(), os.fstat(told.fileno()).st_size, 0)
    return [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def _travelling(settings: Settings) -> Settings:
    """The settings as Ray may keep them: with files in the home, for this user only, instead of secrets."""
    if settings.ray_address is not None:
        return settings  # other machines have no such file: what is a secret is refused when it is to travel

    def keep(name: str, value: str) -> str:
        path = private_dir(settings.home / _SECRETS) / f"{settings.env}-{name}"
        write_private(path, value)
        return f"{FILE}{path}"

    return settings.by_reference(keep)


def _spawn(work: tuple[Settings, str], told: IO[bytes], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Run `start_cluster` in a program that imports from where this one does, and that no Ctrl-C reaches."""
    import pickle

    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=told,
        stderr=log,
        start_new_session=True,
    )
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:
        pickle.dump((sys.path, sys.argv), child.stdin)
        pickle.dump(work, child.stdin)
    return child


#: The paths come first: without them the rest can't be read. Ray hands them, and the folder of the script, to all
#: workers of whoever starts the bridge.
_CHILD = """\
import pickle, sys
sys.path[:], sys.argv[:] = pickle.load(sys.stdin.buffer)
from squadron import servers
servers.start_cluster(*pickle.load(sys.stdin.buffer))
"""


def start_cluster(settings: Settings, joined: str) -> None:
    """Join or start Ray, and start the bridge on it; tells on stdout what happens, in a line of JSON each.

    Args:
        joined: address of the Ray that the program is in for which this is done; empty if it is in none.
    """
    from squadron.bridge.serve import cluster

    told = os.fdopen(os.dup(1), "w", buffering=1)
    # Others may write to stdout as well.
    os.dup2(2, 1)

    def tell(what: Any) -> None:
        told.write(json.dumps(what) + "\n")

    def starts() -> None:
        tell("starts")
        # Ray takes seconds to start, and seconds to import: both at once, now that none is known to be joined.
        threading.Thread(target=cluster.load_bridge, name="imports Ray", daemon=True).start()

    try:
        on = dataclasses.replace(settings, ray_address=joined) if joined else settings
        cluster.join(on, on_start=starts)
        tell("joined")
        cluster.start_bridge(settings)
    except SquadronError as error:
        tell(error.to_dict())


async def _in_thread(
    work: Callable[[], T],
    *,
    give_up: Callable[[], None] = lambda: None,
    keep: Callable[[T], None] = lambda _: None,
) -> T:
    """Run what blocks in a thread, and wait for its end even if cancelled: nothing goes on behind our back.

    A pool would refuse it while the interpreter ends, which is when a squad that was left open is closed.

    Args:
        give_up: called when cancelled, so that the end comes soon.
        keep: takes the result, which is lost otherwise when this is cancelled.
    """
    ended: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            result = work()
            keep(result)
            ended.set_result(result)
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, name="squadron servers", daemon=True).start()
    waiting, cancelled = asyncio.wrap_future(ended), None
    while not waiting.done():
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError as error:
            cancelled = error
            give_up()
    if cancelled is not None:
        waiting.exception()
        raise cancelled
    return waiting.result()


@contextlib.contextmanager
def coming_up(settings: Settings) -> Iterator[None]:
    """Have others of this home know meanwhile that the environment is being brought up."""
    with contextlib.ExitStack() as told:
        with contextlib.suppress(ConfigError, OSError):
            # Where the home can't be written nobody can wait for it.
            private_dir(settings.home / _UP)
            told.enter_context(marked(_up_file(settings)))
        yield


def is_coming_up(settings: Settings) -> bool:
    """Whether somebody of this home brings the environment up now."""
    return is_marked(_up_file(settings))


def _up_file(settings: Settings) -> Path:
    return settings.home / _UP / f"{settings.env}.lock"


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
    from squadron.bridge.jetstream.link import embedded

    stopped = []
    try:
        if _stop_ray(settings):
            stopped.append("ray")
    finally:
        if settings.nats_url is None and embedded.stop(settings.home):
            stopped.append("nats")
    return stopped


def _stop_ray(settings: Settings) -> bool:
    from squadron.bridge.serve import cluster, local

    running = local.find(settings.home)
    if running is not None and cluster.joined_address() == running.address:
        # A process that is still connected would be ended with its cluster.
        sys.modules["ray"].shutdown()
    forget_keys(settings.home)
    shutil.rmtree(settings.home / _SECRETS, ignore_errors=True)
    return local.stop(settings.home)
