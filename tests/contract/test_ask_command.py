"""`squadron ask`, as a shell has it, on a real server: what it prints, and what it does without."""

from __future__ import annotations

from squadron import Agent, topic
from squadron.bridge.jetstream.wiring import Wiring
from tests.contract.command import run
from tests.contract.conftest import ON_NATS, Serve, World

#: Each takes a good part of the time that an ask has, and none is needed for one that ends in a result.
HEAVY = {
    "ray",
    "aiohttp",
    "openai",
    "anthropic",
    "structlog",
    "rich",
    "psutil",
    "urllib.request",
    "snowballstemmer",
    "nats.js.api",
    "nacl",
    "nkeys",
    "tomllib",
    "gzip",
    "encodings.idna",
}
#: What other commands, replicas or the bridge need: some thirty dataclasses, of half a millisecond each.
OF_OTHERS = {
    "squadron.bridge.jetstream.keeping",
    "squadron.bridge.jetstream.line_queue",
    "squadron.bridge.jetstream.own_streams",
    "squadron.runtime.asking.answering",
    "squadron.runtime.asking.negotiation",
    "squadron.runtime.asking.question_records",
    "squadron.runtime.lite.feed",
    "squadron.runtime.lite.reader",
    "squadron.runtime.running.pump",
    "squadron.runtime.store.dead_letters",
    "squadron.runtime.telemetry.happenings",
    "squadron.runtime.wire.bids",
    "squadron.runtime.wire.deployment",
    "squadron.runtime.wire.question",
}


class Ringer(Agent):
    """Rings."""

    @topic("ringer.ring")
    async def ring(self, text: str) -> str:
        return f"{text}!"


@ON_NATS
async def test_an_ask_that_ends_in_a_result_loads_nothing_heavy(world: World, serve: Serve) -> None:
    wiring = (await serve(Ringer())).peer.place
    assert isinstance(wiring, Wiring)
    tell = "import atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"

    code, out, err = await run(wiring, "ask", "ringer.ring", "text=ding", before=tell)

    modules = set(err.split())
    assert (code, out) == (0, "ding!\n")
    assert "squadron.client.squad" in modules
    assert not HEAVY & modules
    assert not OF_OTHERS & modules
