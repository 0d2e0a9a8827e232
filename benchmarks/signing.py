"""What signatures cost: CPU and time of an ask without them, signed, and signed and checked, in turn.

Caller and replica are one process, on a real nats-server; each way has an environment of its own on it:
`python -m benchmarks.signing`. No part of `make bench`, since what was hoped for is missed: two signatures and two
checks of Ed25519 alone take two thirds of what an ask without them takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from benchmarks.processes import TEXT
from benchmarks.targets import Target, ratios
from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.logs import configure_logs
from squadron.runtime.trust.jwts import credentials, issue
from squadron.runtime.trust.keys import Key
from squadron.runtime.wire.envelope import AgentIdentity

#: Rounds, asks of a round at once and one after the other, and how many are under way at once.
ROUNDS, ASKS, ALONE, AT_ONCE = 16, 500, 60, 32
#: What signing and checking may cost: issue "Trust".
CPU_RATIO, P50_RATIO = 1.25, 1.15

Way = Literal["off", "sign", "require"]
WAYS: tuple[Way, ...] = ("off", "sign", "require")


class Notary(Agent):
    """Says it again."""

    name = "notary"
    slots = AT_ONCE

    @topic("bench.notary")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text


@dataclass
class SigningFigures:
    """CPU in µs of one ask, caller and replica together, and its p50 alone in µs, by way; of each round."""

    cpu_us: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    p50_us: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})

    def targets(self) -> list[Target]:
        """What is promised of them."""
        cpu = ratios(self.cpu_us["require"], self.cpu_us["off"])
        p50 = ratios(self.p50_us["require"], self.p50_us["off"])
        return [
            Target("CPU of an ask that is signed and checked / without", cpu, CPU_RATIO, at_most=True),
            Target("p50 of an ask that is signed and checked / without", p50, P50_RATIO, at_most=True),
        ]

    def __str__(self) -> str:
        lines = []
        for way in WAYS:
            cpu, p50 = min(self.cpu_us[way]), min(self.p50_us[way])
            more_cpu = statistics.median(ratios(self.cpu_us[way], self.cpu_us["off"]))
            more_p50 = statistics.median(ratios(self.p50_us[way], self.p50_us["off"]))
            lines.append(
                f"{way:8} CPU {cpu:5.0f} µs, p50 {p50:5.0f} µs (least of rounds); "
                f"ratios to off (medians): CPU {more_cpu:.2f}, p50 {more_p50:.2f}"
            )
        return "\n".join(lines)


class Realm:
    """Keys of one account, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._account = folder, Key.create("A")
        self._keys = {role: Key.create("A") for role in ("bridge", "agent", "client")}
        roles = {role: [key.public] for role, key in self._keys.items()}
        self.trust = folder / "trust.json"
        self.trust.write_text(json.dumps({"account": self._account.public, "roles": roles}))

    def creds(self, name: str, role: str) -> Path:
        """The file of one principal."""
        user, nats = Key.create("U"), {"issuer_account": self._account.public}
        token = issue("user", user.public, self._keys[role], name=name, nats=nats)
        path = self._folder / f"{name}.creds"
        path.write_bytes(credentials(token, user))
        return path


@contextlib.asynccontextmanager
async def _squad(base: Settings, realm: Realm, way: Way) -> AsyncIterator[Wiring]:
    """A replica of the agent, and who asks it."""
    async with contextlib.AsyncExitStack() as stack:

        async def join(name: str, role: str) -> Wiring:
            settings = replace(base, env=way)
            if way != "off":
                creds = realm.creds(f"{name}", role)
                verify: Literal["off", "require"] = "require" if way == "require" else "off"
                settings = replace(settings, trust=realm.trust, nats_user_credentials=creds, verify=verify)
            wiring = await Wiring.open(settings, AgentIdentity(id=f"{name}-0a1b2c3d", type=name), create=True)
            stack.push_async_callback(wiring.aclose)
            return wiring

        bridge = await join("bridge", "bridge")
        host = Host(await join("notary", "agent"), Notary(), AgentSpec.of(Notary), slots=AT_ONCE)
        await bridge.ports.queue.declare(host.mailbox)
        await bridge.registry.advertise(host.spec.card())
        await host.start()
        stack.push_async_callback(host.stop, 5)
        yield await join("caller", "client")


def measure() -> SigningFigures:
    """Measure it, in some 30 seconds."""
    return asyncio.run(_measure())


async def _measure() -> SigningFigures:
    figures = SigningFigures()
    with tempfile.TemporaryDirectory(prefix="sq-bench-") as home:
        settings = Settings.load({}, home=Path(home), log_level="WARNING", heartbeat_s=600)
        configure_logs("WARNING")
        realm = Realm(Path(home))
        try:
            async with contextlib.AsyncExitStack() as stack:
                callers = {way: await stack.enter_async_context(_squad(settings, realm, way)) for way in WAYS}
                for number in range(ROUNDS + 1):
                    order = WAYS[number % 3 :] + WAYS[: number % 3]
                    for way in order:
                        cpu_us, p50_us = await _cpu_us(callers[way]), await _p50_us(callers[way])
                        # The first round warms everything up.
                        if number:
                            figures.cpu_us[way].append(cpu_us)
                            figures.p50_us[way].append(p50_us)
        finally:
            embedded.stop(settings.home)
    return figures


async def _ask(caller: Wiring) -> None:
    (await caller.caller.ask("bench.notary", {"text": TEXT})).unwrap()


async def _cpu_us(caller: Wiring) -> float:
    slots = asyncio.Semaphore(AT_ONCE)

    async def ask() -> None:
        async with slots:
            await _ask(caller)

    gc.collect()
    began = time.process_time()
    await asyncio.gather(*(ask() for _ in range(ASKS)))
    return (time.process_time() - began) / ASKS * 1e6


async def _p50_us(caller: Wiring) -> float:
    took: list[float] = []
    for _ in range(ALONE):
        began = time.perf_counter()
        await _ask(caller)
        took.append((time.perf_counter() - began) * 1e6)
    return statistics.median(took)


if __name__ == "__main__":
    measured = measure()
    sys.stdout.write(f"{measured}\n" + "".join(f"{target}\n" for target in measured.targets()))
    (Path(__file__).parent / "results" / "signing.json").write_text(json.dumps(asdict(measured), indent=1) + "\n")
