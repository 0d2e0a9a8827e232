"""How long a start takes, beside that of Ray and Serve alone, in one run: `up`, one agent, six; and the shell.

Bare is what anybody has to wait for: `ray start --head`, `serve.start`, and a Serve deployment that does nothing.
Both clusters are on loopback with free ports, one after the other, each in a folder of its own. Where JupyterLab
is installed, both have what stands in for a grammar that Ray's processes would build when they start (ADR 0009).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from squadron import Agent, Settings, Squad, topic
from squadron.bridge.serve.ahead import put_ahead

AGENTS = 6
#: A start on a busy machine; one that takes longer is a fault.
WITHIN_S = 180.0
#: What ours may cost: times of bare, and seconds of CPU.
MOST_UP, MOST_DEPLOY = 1.3, 1.5
MOST_HELP_S, MOST_ASK_S = 0.15, 0.35

# What a user of Serve would write. Its times are taken inside, so that no import counts.
_BARE = """
import sys, time
import ray
from ray import serve
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
serve.start(proxy_location="Disabled")
print("started", flush=True)

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Trivial:
    def __call__(self):
        return None

def deploy(names):
    began = time.monotonic()
    serve.run_many([serve.RunTarget(Trivial.bind(), name=name, route_prefix=None) for name in names])
    print(time.monotonic() - began, flush=True)

deploy(["bare"])
deploy([f"bare{i}" for i in range(int(sys.argv[1]))])
"""


def _agent(number: int) -> type[Agent]:
    class Echo(Agent):
        """Says it again."""

        @topic(f"bench{number}.say")
        async def say(self, text: str) -> str:
            """Say it again."""
            return text

    Echo.__name__ = Echo.__qualname__ = f"Echo{number}"
    Echo.name = f"echo-{number}"
    return Echo


@contextlib.contextmanager
def _bare_ray(folder: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    any_port = ("port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port")
    command += [f"--{name}=0" for name in (*any_port, "metrics-export-port", "min-worker-port", "max-worker-port")]
    command += ["--node-ip-address=127.0.0.1", f"--temp-dir={folder}", "--object-store-memory=200000000"]
    ray = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield ray
    finally:
        # With --block it takes its daemons along.
        ray.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            ray.wait(20.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ray.pid, signal.SIGKILL)


def _measure_bare(folder: Path) -> tuple[float, float, float]:
    """Seconds of the start, of one deployment and of several."""
    env = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    env |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    # Where JupyterLab is installed this spares each of Ray's processes 2 s, ours and bare ones alike.
    env |= put_ahead(env)
    began = time.monotonic()
    with _bare_ray(folder, env) as ray:
        assert ray.stdout is not None
        if not any("runtime started" in line for line in ray.stdout):
            raise RuntimeError("the bare Ray did not start")
        address = folder / "ray_current_cluster"
        # It is written right after Ray says that it has started.
        while not address.exists() or not address.read_text().strip():
            if ray.poll() is not None:
                raise RuntimeError("the bare Ray ended")
            time.sleep(0.01)
        env["RAY_ADDRESS"] = address.read_text().strip()
        bare = subprocess.Popen(
            [sys.executable, "-c", _BARE, str(AGENTS)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert bare.stdout is not None
        if bare.stdout.readline() != "started\n":
            raise RuntimeError("the bare Serve did not start")
        up_s = time.monotonic() - began
        one_s, several_s = float(bare.stdout.readline()), float(bare.stdout.readline())
        bare.wait(WITHIN_S)
    return up_s, one_s, several_s


def _squadron(home: Path, *arguments: str) -> tuple[float, float]:
    """Seconds that a command takes, and its seconds of CPU."""
    script = "from squadron.cli import main; main()"
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"SQUADRON_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=WITHIN_S,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, cpu_s


async def _deploy(home: Path) -> tuple[float, float]:
    """Seconds of deploying one agent, and of several more."""
    async with await Squad.connect(Settings.load(home=home)) as squad:
        began = time.monotonic()
        await squad.deploy(_agent(0))
        one_s = time.monotonic() - began
        began = time.monotonic()
        await squad.deploy(*(_agent(1 + number) for number in range(AGENTS)))
        return one_s, time.monotonic() - began


def _measure_ours(home: Path) -> tuple[float, float, float, float]:
    """Seconds of the start, of one agent and of several, and of CPU of an ask from the shell."""
    try:
        up_s, _ = _squadron(home, "up")
        one_s, several_s = asyncio.run(_deploy(home))
        ask_cpu_s = min(_squadron(home, "ask", "bench0.say", "text=x")[1] for _ in range(3))
    finally:
        _squadron(home, "down", "--delete-data")
    return up_s, one_s, several_s, ask_cpu_s


def main() -> None:
    """Measure, and print a table."""
    # As it is where packages are installed: compiled once, not by each process again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="sq-") as folder:
        # First what the disk has not read yet is read, by a start that does not count.
        _squadron(Path(folder), "up")
        _squadron(Path(folder), "down", "--delete-data")
        help_cpu_s = min(_squadron(Path(folder), "--help")[1] for _ in range(3))
        bare = _measure_bare(Path(folder, "bare"))
        *ours, ask_cpu_s = _measure_ours(Path(folder, "home"))
    rows = (("up", MOST_UP), ("deploy one", MOST_DEPLOY), (f"deploy {AGENTS}", MOST_DEPLOY))
    print(f"{'':<12} {'bare':>8} {'squadron':>9} {'ratio':>6} {'at most':>8}")
    for (name, most), theirs, mine in zip(rows, bare, ours, strict=True):
        print(f"{name:<12} {theirs:>6.1f} s {mine:>7.1f} s {mine / theirs:>6.2f} {most:>8.2f}")
    for name, cpu_s, most in (("ask, CPU", ask_cpu_s, MOST_ASK_S), ("--help, CPU", help_cpu_s, MOST_HELP_S)):
        print(f"{name:<12} {'':>8} {cpu_s:>7.2f} s {'':>6} {most:>6.2f} s")


if __name__ == "__main__":
    main()
