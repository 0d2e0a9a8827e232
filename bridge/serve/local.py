"""The local Ray cluster: one per home, started by whoever needs it first, found by all, left running.

It is a plain `ray start --head` on loopback with free ports, a temporary directory and a token of its own,
so that it lives beside any other Ray on the machine. This module never imports ray: what a process must have
in its environment to join (`environment`) is read by ray when it is imported.

All calls block (a start takes 5 s on 2 cores, finding it 10 ms); call them through a thread in async code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from squadron.actors.thinking.credentials import is_for_all, remember_keys
from squadron.bridge.daemons import (
    is_alive,
    locked,
    never,
    private_dir,
    stop_processes,
    tail,
    write_private,
)
from squadron.bridge.serve.ahead import put_ahead
from squadron.bridge.serve.pace import calm
from squadron.runtime.errors import ClusterUnavailableError

#: 5 s when idle on 2 cores, 104 where 13 others want them (measured). One that failed ends before.
START_WITHIN_S = 180.0

#: A start that fails, the stop after it, and a margin.
_LOCK_WITHIN_S = START_WITHIN_S + 30.0

#: What workers load that Ray starts ahead: nearly all that runs here are replicas.
_PRELOADED = "ray.serve._private.application_state"

#: Between SIGTERM and SIGKILL. Workers and agents go within 0.5 s; raylet and GCS then only wait for each
#: other (more than 4 s, measured) and have nothing to lose. Who wants work finished drains before the stop.
_STOP_WITHIN_S = 1.0

#: Ray takes 30 % of the RAM by default; messages go through NATS, so little is left for the object store.
_OBJECT_STORE_BYTES = 200_000_000

#: What of the shell's environment all workers get: what programs need to run at all, and what is meant for us. The
#: rest may hold secrets; `SQUADRON_PASS_ENV` names what agents need of it. Of those, too, no secret is passed on.
_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TERM|VIRTUAL_ENV|CONDA_PREFIX|PYTHON\w+|COVERAGE_\w+"
    r"|(DY)?LD_LIBRARY_PATH|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|(?i:(https?|all|no)_proxy)|OMP_NUM_THREADS"
    r"|CUDA_\w+|NVIDIA_\w+|XDG_\w+|SYSTEMROOT|RAY_\w+|SQUADRON_\w+|OTEL_\w+"
)

#: Where the workers' environment would lead them to another cluster than this one.
_FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_REDIS_ADDRESS")

#: Without any of these the cluster is dead; how each one's program ends in its command line.
_DAEMONS = {"gcs": "/gcs_server", "raylet": "/raylet", "dashboard": "/dashboard.py"}

#: What `ray start` says when its daemon was not there in time. That waits 15 s for its agents and 30 s in all,
#: whatever else the machine does (Ray 2.60), for what takes 4 s of CPU; so it is started up to so many times.
_TOO_SLOW, _STARTS = "timed out during startup", 4
#: `ray start`, able to import the hook below even where squadron is not installed (a checkout).
_RAY_CLI = "import sys; sys.path.append(sys.argv.pop(1)); from ray.scripts.scripts import main; main()"


@dataclass(frozen=True)
class LocalRay:
    """A running local cluster."""

    address: str
    """`127.0.0.1:<port>`, for `ray.init(address=…)` in a process that has `environment` set."""

    dashboard_url: str
    """`http://127.0.0.1:<port>`: the dashboard, and Serve's REST API (needs the token as a bearer)."""

    temp_dir: str
    """Ray's sockets and logs (`session_latest/logs`)."""

    token_path: str
    """File with the token that every client must present."""

    session_id: int
    """The POSIX session all its processes belong to: that of the `ray start` that made them."""

    gcs_pid: int
    """Process id of the control store; without it the cluster is dead."""

    raylet_pid: int
    """Process id of the node's daemon; without it no worker lives."""

    dashboard_pid: int
    """Process id of the dashboard; without it nothing can be deployed or scaled."""


def ensure(
    home: Path,
    *,
    num_cpus: int | None = None,
    extra_env: Mapping[str, str] | None = None,
    on_start: Callable[[], object] = never,
) -> LocalRay:
    """Return this home's cluster, starting it if it doesn't run; any number of processes may ask at once.

    A cluster of which a vital process died is cleared away and started anew; what its workers were at is
    delivered again by NATS.

    Args:
        num_cpus: CPUs the cluster schedules on; by default those of the machine, at least 2. Only a start
            looks at this and at `extra_env`: a running cluster stays as it is.
        extra_env: Environment variables for all workers, on top of those of this process that are passed on.
        on_start: Called right before this call starts a cluster, which then nobody else does.
    Raises:
        ClusterUnavailableError: it did not start; the message ends with the last lines of its output.
        ConfigError: `home` can't be written.
    """
    if found := find(home):
        return found
    base = private_dir(_base(home))
    with _locked(base):
        # Somebody else may have started it while this process waited for the lock.
        if found := find(home):
            return found
        on_start()
        what = home.absolute(), base, num_cpus, dict(extra_env or {})
        for _ in range(_STARTS - 1):
            try:
                return _start(*what)
            except ClusterUnavailableError as error:
                if _TOO_SLOW not in str(error):
                    raise
        return _start(*what)


def find(home: Path) -> LocalRay | None:
    """Return this home's cluster if all its vital processes run, else None."""
    stored = _stored(_base(home))
    if "address" not in stored:
        return None
    local = LocalRay(**stored)
    vital = (local.gcs_pid, local.raylet_pid, local.dashboard_pid)
    return local if all(_is_daemon(pid, local.temp_dir) for pid in vital) else None


def stop(home: Path) -> bool:
    """Kill this home's cluster, every worker included, and remove its temporary directory; whether it ran.

    Bounded: SIGTERM, some seconds later SIGKILL. Other Ray clusters on the machine are left alone.

    Raises:
        ClusterUnavailableError: a process survived even SIGKILL.
    """
    base = _base(home)
    if not base.is_dir():
        return False
    with _locked(base):
        return _clear(base)


def environment(local: LocalRay) -> dict[str, str]:
    """What a process must have in `os.environ` before it imports ray, to join `local`."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": local.token_path,
        # A token in the environment would win over the file; ray takes an empty one as none.
        "RAY_AUTH_TOKEN": "",
        "RAY_USAGE_STATS_ENABLED": "0",
        # The name is Ray's: 0 is what it does on macOS, where a node is 127.0.0.1. By default a node on Linux
        # is the machine's outward address, even with --node-ip-address=127.0.0.1: it then listens to the
        # whole network, and dies when a laptop changes networks.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def adapt_start(ray_params: Any, head: bool) -> None:
    """`RAY_START_HOOK`: what `ray start` has no options for."""
    del os.environ["RAY_START_HOOK"]  # for this start only, not for the workers
    # No `ray://` server: it costs a process of 80 MB, and nothing here speaks it.
    ray_params.ray_client_server_port = None
    # The dashboard itself looks for a free port from 8265 on; with any number given, a taken one is the end.
    ray_params.dashboard_port = None


def _base(home: Path) -> Path:
    return home.absolute() / "ray"


def _temp_root(base: Path) -> Path:
    # Not below home: Ray puts UNIX sockets there, whose paths are limited to 107 bytes (103 on macOS).
    return Path(f"/tmp/sq-{os.getuid()}-{hashlib.sha256(str(base).encode()).hexdigest()[:10]}")


def _locked(base: Path) -> contextlib.AbstractContextManager[None]:
    return locked(base / "lock", within_s=_LOCK_WITHIN_S, error=ClusterUnavailableError)


def _start(home: Path, base: Path, num_cpus: int | None, extra_env: dict[str, str]) -> LocalRay:
    _clear(base)
    token_path = base / "token"
    if not token_path.is_file():
        write_private(token_path, secrets.token_hex(32))
    draft = LocalRay("", "", str(_owned_temp_dir(base)), str(token_path), 0, 0, 0, 0)
    env = {name: value for name, value in os.environ.items() if _is_passed_on(name)}
    remember_keys(home)
    env |= put_ahead(env) | calm(os.environ)
    # What a job calls `python` is this one, whether or not its folder is on the path of whoever starts Ray.
    env["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), env.get("PATH", os.defpath)))
    env |= {"SQUADRON_HOME": str(home), **extra_env, **environment(draft)}
    env["RAY_START_HOOK"] = f"{__name__}.{adapt_start.__name__}"
    cores = num_cpus or max(os.cpu_count() or 2, 2)
    # Idle ones above it are ended; the bridge and Serve's controller count, too, which took two started ahead.
    env |= {"RAY_preload_python_modules": _PRELOADED, "RAY_num_workers_soft_limit": str(cores + 2)}
    # As text: it imports ray.
    env.setdefault("RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH", "squadron.bridge.serve.building.build_here")
    log = base / "start.log"
    write_private(log, "")
    with log.open("a") as output:
        process = subprocess.Popen(
            _command(draft.temp_dir, cores),
            env=env,
            cwd=base,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # Written down at once: should this process die now, the next one still finds what to clear away.
    write_private(base / "cluster.json", json.dumps({"session_id": process.pid}))
    if local := _started(base, draft, process):
        write_private(base / "cluster.json", json.dumps(asdict(local), indent=1))
        return local
    _clear(base)
    raise ClusterUnavailableError(
        f"the local Ray cluster did not start\n{tail(log)}",
        hint=f"see {log}, or set RAY_ADDRESS to a cluster of your own",
    )


def _is_passed_on(name: str) -> bool:
    return _PASSED_ON.fullmatch(name) is not None and name not in _FOREIGN and is_for_all(name)


def _started(base: Path, draft: LocalRay, process: subprocess.Popen[bytes]) -> LocalRay | None:
    """Wait until `ray start` is done and read from it what became of the free ports; None if it failed."""
    try:
        exit_code = process.wait(START_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None
    dashboard = re.search(r"http://127\.0\.0\.1:\d+", (base / "start.log").read_text())
    pids = {_role(member): member.pid for member in _members(base)}
    if exit_code != 0 or dashboard is None or not _DAEMONS.keys() <= pids.keys():
        return None
    return dataclasses.replace(
        draft,
        address=Path(draft.temp_dir, "ray_current_cluster").read_text().strip(),
        dashboard_url=dashboard.group(),
        session_id=process.pid,
        gcs_pid=pids["gcs"],
        raylet_pid=pids["raylet"],
        dashboard_pid=pids["dashboard"],
    )


def _command(temp_dir: str, cores: int) -> list[str]:
    # Port 0 is "any free one". The defaults of GCS (6379), agent (52365) and workers (10002-19999) collide
    # with those of another cluster on this machine.
    any_port = (
        "port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
        "min-worker-port",
        "max-worker-port",
    )
    root = Path(next(iter(sys.modules["squadron"].__path__))).parent
    return [
        *(sys.executable, "-c", _RAY_CLI, str(root), "start", "--head"),
        *(f"--{name}=0" for name in any_port),
        "--node-ip-address=127.0.0.1",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--temp-dir={temp_dir}",
        f"--num-cpus={cores}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        "--disable-usage-stats",
        # The autoscaler of nodes has nothing to do here; it costs 1 s of the start and 85 MB (measured).
        "--no-monitor",
        "--log-color=false",
    ]


def _owned_temp_dir(base: Path) -> Path:
    path = _temp_root(base)
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    # Anybody may make things in /tmp: what is there already must be a directory of ours, closed to others.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise ClusterUnavailableError(f"{path} belongs to somebody else", hint="remove it, or set SQUADRON_HOME")
    return path / "ray"  # Ray opens its directory to everybody (0777), so the closed one is above it


def _stored(base: Path) -> dict[str, Any]:
    try:
        stored = json.loads((base / "cluster.json").read_text())
    except (OSError, ValueError):
        return {}
    known = LocalRay.__dataclass_fields__.keys()
    return stored if stored.keys() in ({"session_id"}, known) else {}


def _clear(base: Path) -> bool:
    ran = False
    for _ in range(3):  # the raylet may start a worker while it is told to end
        if not (members := list(_members(base))):
            break
        ran = stop_processes(members, within_s=_STOP_WITHIN_S)
    else:
        if left := [process.pid for process in _members(base)]:
            raise ClusterUnavailableError(f"these processes of the local Ray can't be killed: {left}")
    shutil.rmtree(_temp_root(base), ignore_errors=True)
    (base / "cluster.json").unlink(missing_ok=True)
    return ran


def _members(base: Path) -> Iterator[psutil.Process]:
    """Every living process of this home's cluster, also those whose parents died, and what they started.

    Two signs are needed: the POSIX session of our `ray start`, which only its offspring has, and a use of the
    temporary directory, since the number of a session that is gone may belong to somebody else by now. (The
    environment would be no sign: Ray's workers overwrite theirs with their title.)
    """
    temp_dir = str(_temp_root(base))
    everybody = list(psutil.process_iter())
    # A starter that died before it wrote cluster.json leaves a `ray start`, or daemons, that name the directory.
    sessions = {
        _session(process)
        for process in everybody
        if _is_daemon(process.pid, temp_dir) or f"--temp-dir={temp_dir}/ray" in _words(process)
    }
    sessions.add(_stored(base).get("session_id", -1))
    ours = [process for process in everybody if _session(process) in sessions and _uses(process, temp_dir)]
    seen: set[int] = {os.getpid()}
    for process in ours:
        with contextlib.suppress(psutil.Error):
            for member in (process, *process.children(recursive=True)):
                if member.pid not in seen and is_alive(member):
                    seen.add(member.pid)
                    yield member


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def _uses(process: psutil.Process, temp_dir: str) -> bool:
    if any(temp_dir in word for word in _words(process)):
        return True
    with contextlib.suppress(psutil.Error):
        return any(file.path.startswith(temp_dir) for file in process.open_files())
    return False


def _role(process: psutil.Process) -> str:
    """`gcs`, `raylet` or `dashboard` for the three vital daemons, empty for anything else."""
    # The first two are binaries, the third is a script of the interpreter before it.
    programs = _words(process)[:2]
    return next((role for role, end in _DAEMONS.items() if any(word.endswith(end) for word in programs)), "")


def _is_daemon(pid: int, temp_dir: str) -> bool:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return _role(process) != "" and any(temp_dir in word for word in _words(process))
    return False


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []
