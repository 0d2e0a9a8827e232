"""For code that runs on Ray, and has no connection to NATS: tasks, actors, Serve applications, Ray Data.

`ask` an agent, `bind` an actor or a Serve handle to a topic, have `AskEach` ask with each row of a data set, and
hand over large values in Ray's object store with `put` and `get`. Import it where Ray runs: it imports Ray.
"""

from __future__ import annotations

from squadron.bridge.serve.ray_calls import AskEach, ask, bind, get, put, unbind

__all__ = ["AskEach", "ask", "bind", "get", "put", "unbind"]
