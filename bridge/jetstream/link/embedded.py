"""The embedded nats-server: one per home, started by whoever needs it first, shared by all, left running.

It listens on loopback only, asks for a random token, and keeps its streams under `home/nats`. All calls block
(start to finish ~50 ms, at worst `ready_within_s`); call them through a thread in async code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from squadron.bridge.daemons import (
    command_line,
    is_alive,
    locked,
    never,
    private_dir,
    stop_processes,
    tail,
    write_private,
)
from squadron.bridge.jetstream.link.at_home import authority_of, embedded_tls
from squadron.bridge.jetstream.link.server_binary import NAME, check_binary, find_binary
from squadron.runtime.errors import BusUnavailableError

#: A fresh server answers after 15 ms, one that was killed with a million topics of `squad.lite` after 20 s on a
#: busy machine (measured); one that dies before is not waited for.
READY_WITHIN_S = 60.0

#: What a starter holding the lock may need: a failed try on the old port, one on a random port, a margin.
_LOCK_WITHIN_S = 3 * READY_WITHIN_S

#: SIGTERM to exit takes 1 ms idle; a server that needs longer than this to flush is killed.
_STOP_WITHIN_S = 5.0

#: A server needs 10 ms to read its configuration anew (measured).
_RELOAD_WITHIN_S = 5.0

#: The server's own 2 s for a handshake are few for a client on a machine that is full.
_TLS_WITHIN_S = 10

#: Local work is polled at this step.
_POLL_S = 0.01

#: How much garbage Go lets pile up, in percent of what is in use, before it collects. With Go's own 100 that takes
#: 15 % of the server's time once it remembers the ids of 200,000 tasks. Twice as much makes it half as often; with
#: a million lite topics the server has 0.6 GB then instead of 0.4.
_ENVIRONMENT = {"GOGC": "200"}

#: Why these values: nats-py goes deaf on v2 acks (reference/nats.md fact 1), and 2.15 caps consumers at 1000
#: per stream unless told otherwise (fact 3).
_CONFIG = """\
# Written by squadron at every start of the server; changes here are lost.
server_name: {name}
listen: "127.0.0.1:{port}"
http: "127.0.0.1:-1"
ports_file_dir: {ports_dir}
{login}
{tls}max_payload: 8MB
feature_flags {{ js_ack_fc_v2: false }}
jetstream {{
  store_dir: {store_dir}
  max_buffered_msgs: 100000
  limits {{ default_max_consumers: -1 }}
}}
"""


@dataclass(frozen=True)
class Endpoint:
    """A running embedded server: how to reach it."""

    url: str
    """`nats://127.0.0.1:<port>`, without the token."""

    token: str
    """What a client must present; the same over restarts on one store. Empty if each user has credentials
    (`squadron auth`)."""

    pid: int
    """Process id of the server."""

    monitor_url: str
    """`http://127.0.0.1:<port>` of the monitoring pages (`/varz`, `/jsz`, `/healthz`); new at each start."""

    store_dir: str
    """Where JetStream keeps its files."""

    def __repr__(self) -> str:
        return f"Endpoint({self.url}, pid={self.pid})"


def ensure(
    home: Path,
    *,
    ready_within_s: float = READY_WITHIN_S,
    on_start: Callable[[], object] = never,
    given_up: Callable[[], bool] = never,
    trusted: str = "",
) -> Endpoint:
    """Return this home's server, starting it if it doesn't run.

    Any number of processes may call this at the same time: exactly one server starts. After a crash it
    starts again on the same store, with the same token, and on the same port if that is still free.

    Args:
        ready_within_s: How long a start may take, in seconds.
        on_start: Called right before this call starts a server, which then nobody else does.
        given_up: Asked now and then, whether it is not wanted any more: what was begun is stopped then.
        trusted: SHA-256 of a nats-server that may be started besides those that are known here.
    Raises:
        ConfigError: the nats-server binary is not installed, or another than it should be, or `home` can't be
            written.
        BusUnavailableError: the server did not come up in time; the message ends with its log's last lines.
            Or it was given up.
    """
    if found := find(home):
        return found
    binary = find_binary()
    base = private_dir(_base(home))
    with locked(base / "lock", within_s=_LOCK_WITHIN_S, given_up=given_up):
        # Somebody else may have started it while this process waited for the lock.
        if found := find(home):
            return found
        check_binary(binary, trusted)
        on_start()
        return _start(binary, base, ready_within_s, given_up)


def find(home: Path) -> Endpoint | None:
    """Return this home's server if it runs and answers, else None."""
    base = _base(home)
    endpoint = _stored(base)
    if endpoint is None or not _runs(endpoint.pid, base):
        return None
    return endpoint if _greets(endpoint) else None


def stop(home: Path) -> bool:
    """Stop this home's server, keeping its store, token and port; whether one was running."""
    base = _base(home)
    if not base.is_dir():
        return False
    with locked(base / "lock", within_s=_LOCK_WITHIN_S):
        return _stop_all(base)


def reload(home: Path) -> bool:
    """Have this home's server read anew who its users are; whether one runs.

    Who is no user any more is disconnected; all others stay.

    Raises:
        BusUnavailableError: it did not take what it read.
    """
    base = _base(home)
    if not base.is_dir():
        return False
    with locked(base / "lock", within_s=_LOCK_WITHIN_S):
        if (endpoint := find(home)) is None:
            return False
        _write_config(base, endpoint.token, _port(endpoint.url))
        before, deadline = _read_at(endpoint), time.monotonic() + _RELOAD_WITHIN_S
        os.kill(endpoint.pid, signal.SIGHUP)
        while _read_at(endpoint) == before:
            if time.monotonic() > deadline:
                log = base / "server.log"
                raise BusUnavailableError(
                    f"nats-server did not take its new users\n{tail(log)}", hint=f"see {log}"
                )
            time.sleep(_POLL_S)
    return True


def _read_at(endpoint: Endpoint) -> str:
    """When the server has read its configuration, in its own words."""
    from urllib.request import urlopen

    try:
        with urlopen(f"{endpoint.monitor_url}/varz", timeout=1.0) as page:
            return str(json.load(page)["config_load_time"])
    except (OSError, ValueError, LookupError):
        return ""


def _base(home: Path) -> Path:
    return home.absolute() / "nats"


def _start(binary: Path, base: Path, ready_within_s: float, given_up: Callable[[], bool]) -> Endpoint:
    _stop_all(base)  # two servers must never share a store: it has no lock of its own
    before = _stored(base)
    token = (before and before.token) or secrets.token_urlsafe(32)
    ports = [_port(before.url), -1] if before else [-1]
    for port in ports:
        for stale in base.glob("*.ports"):
            stale.unlink()
        _write_config(base, token, port)
        shown = "" if _users_of(base) else token
        if endpoint := _opened(base, _spawn(binary, base), shown, ready_within_s, given_up):
            write_private(base / "endpoint.json", json.dumps(asdict(endpoint), indent=1))
            return endpoint
        _stop_all(base)
        if given_up():
            break
    raise BusUnavailableError(
        f"the embedded nats-server did not start within {ready_within_s:g} s\n{tail(base / 'server.log')}",
        hint=f"see {base / 'server.log'}, or set NATS_URL to a server of your own",
    )


def _write_config(base: Path, token: str, port: int) -> None:
    identity = hashlib.sha256(str(base).encode()).hexdigest()[:8]
    text = _CONFIG.format(
        name=f"squadron-{identity}",
        port=port,
        # A JSON string is a quoted string of the NATS config language as well.
        ports_dir=json.dumps(str(base)),
        tls=_tls_of(base),
        login=_users_of(base) or f"authorization {{ token: {json.dumps(token)} }}",
        store_dir=json.dumps(str(private_dir(base / "store"))),
    )
    write_private(base / "server.conf", text)


def _users_of(base: Path) -> str:
    """What the authority of this home tells its server; empty if it has none, and one token is for all."""
    try:
        return (authority_of(base.parent) / "server.conf").read_text()
    except FileNotFoundError:
        return ""


def _tls_of(base: Path) -> str:
    """Its `tls` block; empty if this home has no certificate for it."""
    files, _ = embedded_tls(base.parent)
    if not files:
        return ""
    own: dict[str, object] = {"cert_file": str(files.cert), "key_file": str(files.key)}
    own |= {"min_version": "1.3", "timeout": _TLS_WITHIN_S}
    users = {"ca_file": str(files.ca), "verify": True} if files.ca else {}
    return f"tls: {json.dumps(own | users)}\n"


def _spawn(binary: Path, base: Path) -> int:
    # The shell backgrounds the server and exits, so that the server belongs to init: it outlives its starter
    # and leaves no zombie in it. It gets no environment of theirs, so nothing of whoever was first sticks to a
    # daemon that all share.
    (base / "server.log").touch(mode=0o600)
    script = '"$0" -c "$1" >>"$2" 2>&1 </dev/null & echo $!'
    arguments = [str(binary), str(base / "server.conf"), str(base / "server.log")]
    started = subprocess.run(
        ["/bin/sh", "-c", script, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd=base,
        env=_ENVIRONMENT,
    )
    return int(started.stdout)


def _opened(base: Path, pid: int, token: str, within_s: float, given_up: Callable[[], bool]) -> Endpoint | None:
    """The endpoint as soon as the server has told its ports and greets; None if it died, or is given up."""
    deadline = time.monotonic() + within_s
    # Not by its command line, as `_runs`: in the moment of its exec it has none, and a second server would start.
    while _lives(pid) and time.monotonic() < deadline and not given_up():
        # No file yet, or half of it.
        with contextlib.suppress(StopIteration, OSError, ValueError, LookupError):
            ports = json.loads(next(base.glob(f"*_{pid}.ports")).read_text())
            endpoint = Endpoint(ports["nats"][0], token, pid, ports["monitoring"][0], str(base / "store"))
            if _greets(endpoint):
                return endpoint
        time.sleep(_POLL_S)
    return None


def _stored(base: Path) -> Endpoint | None:
    try:
        return Endpoint(**json.loads((base / "endpoint.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _runs(pid: int, base: Path) -> bool:
    # A pid alone proves nothing: after a crash it may belong to anybody. Our config file in its command line
    # does. Between fork and exec that is still the shell's command line, which names both as well.
    words = command_line(pid)
    return str(base / "server.conf") in words and any(Path(word).name == NAME for word in words)


def _lives(pid: int) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return is_alive(psutil.Process(pid))
    return False


def _stop_all(base: Path) -> bool:
    import psutil

    # A scan, because a starter may have died between the spawn and writing endpoint.json.
    servers = [process for process in psutil.process_iter() if _runs(process.pid, base)]
    return stop_processes(servers, within_s=_STOP_WITHIN_S)


def _greets(endpoint: Endpoint) -> bool:
    """Whether a server sends its INFO line there. JetStream is up by then: it starts before the listener."""
    try:
        if endpoint.url.startswith("tls:"):
            from urllib.request import urlopen

            # Who only looks would leave a line of an error in its log each time.
            with urlopen(f"{endpoint.monitor_url}/healthz", timeout=1.0):
                return True
        # `create_connection` would load Unicode's tables, to look an address up that needs no looking up.
        with socket.socket() as connection:
            connection.settimeout(1.0)
            connection.connect(("127.0.0.1", _port(endpoint.url)))
            return connection.recv(5) == b"INFO "
    except OSError:
        return False


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])
