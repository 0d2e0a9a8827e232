"""A nats-server like a user's own: it may be killed, and come back on its port with or without its store."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

from squadron.bridge.jetstream.link.server_binary import find_binary


class OwnServer:
    """One nats-server with `extra` configuration, and JetStream if not "off"; `start` it, `stop` it at the end."""

    def __init__(self, folder: Path, extra: str = "", *, jetstream: str = "") -> None:
        stores = f'jetstream {{ store_dir: "{folder}/js"\n{jetstream} }}\n' if jetstream != "off" else ""
        self._folder, self._stores, self.extra = folder, stores, extra
        self._process: subprocess.Popen[bytes] | None = None
        self._port = -1

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the server that runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Return when it listens; after the first time on the same port."""
        for old in self._folder.glob("*.ports"):
            old.unlink()
        config = self._write()
        log = (self._folder / "nats.log").open("ab")
        self._process = subprocess.Popen([str(find_binary()), "-c", str(config)], stdout=log, stderr=log)
        give_up_at = time.monotonic() + 30
        while not (ports := list(self._folder.glob("*.ports"))) or not ports[0].read_text():
            assert self._process.poll() is None, "see nats.log"
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        self._port = int(json.loads(ports[0].read_text())["nats"][0].rpartition(":")[2])

    def _write(self) -> Path:
        config = self._folder / "nats.conf"
        listen = f'listen: "127.0.0.1:{self._port}"\nports_file_dir: "{self._folder}"\n'
        config.write_text(listen + self._stores + self.extra)
        return config

    def reload(self) -> None:
        """Have it read `extra` anew; return when it has."""
        if self._process is not None:
            before = self._reloads()
            self._write()
            self._process.send_signal(signal.SIGHUP)
            while self._reloads() == before:
                assert self._process.poll() is None, "see nats.log"
                time.sleep(0.005)

    def _reloads(self) -> int:
        return (self._folder / "nats.log").read_text().count("Reloaded server configuration")

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def lose_store(self) -> None:
        """Kill it, take away all it has stored, and start it again."""
        self.stop()
        shutil.rmtree(self._folder / "js")
        self.start()
