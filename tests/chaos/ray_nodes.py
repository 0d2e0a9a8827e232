"""A Ray cluster of several nodes on this machine, each of which can be killed with all that runs on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import psutil

from tests.contract.nats_cluster import free_port

#: A node that is not up by then, in seconds, never will be.
UP_WITHIN_S = 120.0
_RAY = "from ray.scripts.scripts import main; main()"


class RayNodes:
    """A head and workers, as `ray start --block` makes them; all are killed at the end.

    Nothing of Ray is in the process of the test.
    """

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._folder, self._nodes = folder, dict[str, subprocess.Popen[bytes]]()
        self._env = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"} | env
        # Ray starts its workers behind all else; on a machine that is busy they would never come up.
        self._env["RAY_worker_niceness"] = "0"
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        for name in list(self._nodes):
            self.kill(name)

    def head(self) -> None:
        """Start the head; no replica is placed there."""
        options = [f"--port={self._port}", "--num-cpus=0", f"--temp-dir={self._folder}", "--dashboard-port=0"]
        self._start("head", ["--head", *options])

    def worker(self, name: str) -> None:
        """Start a node that has room for replicas."""
        self._start(name, [f"--address={self.address}", "--num-cpus=4"])

    def _start(self, name: str, options: list[str]) -> None:
        common = ["--block", "--disable-usage-stats", "--object-store-memory=100000000", f"--node-name={name}"]
        log = (self._folder / f"{name}.log").open("ab")
        command = [sys.executable, "-c", _RAY, "start", "--node-ip-address=127.0.0.1", *common, *options]
        self._nodes[name] = node = subprocess.Popen(command, env=self._env, stdout=log, stderr=log)
        before = (self._folder / f"{name}.log").stat().st_size
        give_up_at = time.monotonic() + UP_WITHIN_S
        while b"Ray runtime started" not in (said := (self._folder / f"{name}.log").read_bytes()[before:]):
            assert node.poll() is None, said.decode()
            assert time.monotonic() < give_up_at, said.decode()
            time.sleep(0.1)

    def processes(self, name: str) -> list[psutil.Process]:
        """All that runs on a node."""
        if self._nodes[name].poll() is not None:
            return []
        node = psutil.Process(self._nodes[name].pid)
        return [node, *node.children(recursive=True)]

    def kill(self, name: str) -> None:
        """Kill a node, with all that runs on it, at one instant."""
        victims = self.processes(name)
        # None of them gets to start another one in between.
        for how in (signal.SIGSTOP, signal.SIGKILL):
            for victim in victims:
                if victim.is_running():
                    victim.send_signal(how)
        self._nodes.pop(name).wait()
        psutil.wait_procs(victims, timeout=10)
