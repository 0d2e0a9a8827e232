"""A server of vectors that speaks OpenAI's API over real HTTP, and gets wrong what such servers get wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from squadron.actors.thinking.embedding import LocalEmbedder


class Vectors(BaseHTTPRequestHandler):
    """`POST /v1/embeddings`, by the local encoder; `fault` says what it gets wrong."""

    encoder = LocalEmbedder()
    fault = ""
    asked: tuple[dict[str, Any], ...] = ()
    keys: tuple[str, ...] = ()
    #: Whoever is `slow` answers when this is set.
    go = threading.Event()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Vectors.asked += (asked,)
        Vectors.keys += (self.headers["Authorization"],)
        if self.fault == "slow":
            self.go.wait(30)
        if self.path != "/v1/embeddings" or self.fault == "refused":
            return self._say(
                401 if self.fault else 404, {"error": {"message": "the key sk-secret123456789 is bad"}}
            )
        if self.fault == "rubbish":
            return self._say(200, {"object": "list", "data": "none"})
        told = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(self.encoder.vectors(asked["input"]))
        ]
        # The API promises an index, not an order.
        told = told[::-1] if self.fault != "too few" else told[:-1]
        self._say(200, {"object": "list", "model": asked["model"], "data": told, "usage": {}})

    def _say(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def vectors_served(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Vectors]]:
    """Serve them, where `OPENAI_BASE_URL` says."""
    Vectors.fault, Vectors.asked, Vectors.keys = "", (), ()
    Vectors.go.clear()
    # Read from a busy disk it takes longer than a client waits.
    Vectors.encoder.vectors(["ready"])
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Vectors)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{serving.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    yield Vectors
    Vectors.go.set()
    serving.shutdown()
    serving.server_close()
