"""Three nats-servers that become one cluster within a moment; each can be killed."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.stream_configs import ask_for
from squadron.bridge.jetstream.wiring import Wiring


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Cluster:
    """Servers `n0`, `n1` and `n2`, with JetStream; all are killed at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._processes = folder, dict[str, subprocess.Popen[bytes]]()
        self.urls: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        ports = [free_port() for _ in range(3)]
        routes = json.dumps([f"nats://127.0.0.1:{port}" for port in ports])
        for number, port in enumerate(ports):
            place = self._folder / f"n{number}"
            place.mkdir()
            config = place / "nats.conf"
            config.write_text(
                f'server_name: n{number}\nlisten: "127.0.0.1:-1"\nports_file_dir: "{place}"\n'
                f'jetstream {{ store_dir: "{place}/js" }}\n'
                f'cluster {{ name: c, listen: "127.0.0.1:{port}", routes: {routes} }}\n'
            )
            log = (place / "nats.log").open("ab")
            command = [str(embedded.find_binary()), "-c", str(config)]
            self._processes[f"n{number}"] = subprocess.Popen(command, stdout=log, stderr=log)
        give_up_at = time.monotonic() + 30
        for number in range(3):
            place = self._folder / f"n{number}"
            while not (found := list(place.glob("*.ports"))) or not found[0].read_text():
                assert time.monotonic() < give_up_at
                time.sleep(0.01)
            self.urls.append(json.loads(found[0].read_text())["nats"][0])

    def __exit__(self, *_: Any) -> None:
        for name in self._processes:
            self.kill(name)

    def kill(self, name: str) -> None:
        """Kill one of them."""
        self._processes[name].kill()
        self._processes[name].wait()

    async def server_of(self, wiring: Wiring, stream: str) -> str:
        """Which of them has the stream."""
        info = await ask_for(wiring.connection, f"STREAM.INFO.{stream}")
        return str(info["cluster"]["leader"])
