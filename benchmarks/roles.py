"""What least privilege costs: asks with the rights of roles, in two accounts, and on an open server, in one run.

Asker and replica have a connection each, in this process; each form has a nats-server. Rounds go through the forms
in another order each time; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks import machine
from benchmarks.processes import TEXT
from benchmarks.targets import Target, ratios, verdict
from squadron import Agent, Settings, topic
from squadron.actors.agent import AgentSpec
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.runtime.asking.caller import Caller
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.logs import configure_logs
from squadron.runtime.ports.queue import Mailbox
from squadron.runtime.wire.envelope import AgentIdentity
from tests.contract.own_server import OwnServer
from tests.contract.restricted import RestrictedServer

RESULTS = Path(__file__).parent / "results"
#: Asks one after the other, and so many more, so many at once, in each round.
ALONE, MANY, AT_ONCE = 500, 3_000, 64
#: Likewise one after the other: asks of an agent that works in order, and some so large, in characters, that their
#: inputs and answers go to the object store.
IN_ORDER, LARGE, LARGE_TEXT = 200, 40, "x" * 600_000
#: Asker and replica do the same in both forms. The server looks each publish up, and carries it, and its answer,
#: over from one account to the other; whoever waits for it waits so much longer.
MOST, MOST_P50, MOST_OF_SERVER = 1.1, 1.25, 1.8


class EchoInARole(Agent):
    """Says it again."""

    @topic("bench.echo")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text


class LineInARole(Agent):
    """Says it again, one after the other."""

    @topic("bench.line")
    async def say(self, text: str) -> str:
        """Say it again."""
        return text


@dataclass
class Form:
    """One way to have the server, and what was measured there, round by round."""

    caller: Caller
    server: psutil.Process
    p50_ms: list[float] = field(default_factory=list)
    #: Of both sides together, and of the server.
    cpu_us: list[float] = field(default_factory=list)
    server_us: list[float] = field(default_factory=list)
    in_order_ms: list[float] = field(default_factory=list)
    large_ms: list[float] = field(default_factory=list)

    async def ask(self, topic: str = "bench.echo", text: str = TEXT) -> None:
        (await self.caller.ask(topic, {"text": text}, AskOptions())).unwrap()

    async def alone(self, count: int, *what: str) -> float:
        """Half of so many asks, one after the other, take no longer than this, in milliseconds."""
        took = []
        for _ in range(count):
            began = time.perf_counter()
            await self.ask(*what)
            took.append(time.perf_counter() - began)
        return 1000 * sorted(took)[count // 2]

    async def measure(self) -> None:
        """One round."""
        self.p50_ms.append(await self.alone(ALONE))
        self.in_order_ms.append(await self.alone(IN_ORDER, "bench.line"))
        self.large_ms.append(await self.alone(LARGE, "bench.echo", LARGE_TEXT))
        left = MANY
        before, server_before = time.process_time(), self._server_s()

        async def asker() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self.ask()

        await asyncio.gather(*(asker() for _ in range(AT_ONCE)))
        self.cpu_us.append(1e6 * (time.process_time() - before) / MANY)
        self.server_us.append(1e6 * (self._server_s() - server_before) / MANY)

    def figures(self) -> dict[str, list[float]]:
        """All that was measured."""
        names = "p50_ms", "in_order_ms", "large_ms", "cpu_us", "server_us"
        return {name: getattr(self, name) for name in names}

    def _server_s(self) -> float:
        times = self.server.cpu_times()
        return times.user + times.system


async def _form(
    stack: AsyncExitStack, bridge: Wiring, replicas: tuple[Wiring, Wiring], asker: Wiring, server: OwnServer
) -> Form:
    for each in (bridge, *replicas, asker):
        stack.push_async_callback(each.aclose)
    for replica, agent in zip(replicas, (EchoInARole(), LineInARole()), strict=True):
        spec, ordered = AgentSpec.of(type(agent)), isinstance(agent, LineInARole)
        patterns = tuple(each.name for each in spec.card().topics)
        lease_s = bridge.settings.lease_s
        await bridge.ports.queue.declare(Mailbox(spec.name, patterns, lease_s, ordered=ordered))
        await bridge.registry.advertise(spec.card())
        host = Host(replica, agent, spec, slots=AT_ONCE, ordered=ordered)
        await host.start()
        stack.push_async_callback(host.stop, 1.0)
    await asker.registry.catch_up()
    return Form(asker.caller, psutil.Process(server.pid))


async def _restricted(stack: AsyncExitStack, folder: Path) -> Form:
    made = RestrictedServer(folder, "bench")
    made.start()
    stack.callback(made.stop)
    bridge, client = await made.open("bridge", "bridge"), await made.open("client", "client")
    names = (AgentSpec.of(EchoInARole).name, False), (AgentSpec.of(LineInARole).name, True)
    one, other = [await made.open("agent", name, ordered=ordered) for name, ordered in names]
    return await _form(stack, bridge, (one, other), client, made.server)


async def _open(stack: AsyncExitStack, folder: Path) -> Form:
    server = OwnServer(folder)
    server.start()
    stack.callback(server.stop)
    settings = Settings(nats_url=server.url, env="bench")
    bridge, one, other, asker = [
        await Wiring.open(settings, AgentIdentity(id=name), create=True)
        for name in ("bridge", "replica", "another", "asker")
    ]
    return await _form(stack, bridge, (one, other), asker, server)


async def _measure(rounds: int) -> dict[str, Form]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("roles", "open"):
            (folder / name).mkdir()
        forms = {
            "roles": await _restricted(stack, folder / "roles"),
            "open": await _open(stack, folder / "open"),
        }
        for number in range(rounds + 1):
            for name in random.sample(list(forms), len(forms)):
                await forms[name].measure()
            if number == 0:
                # The first only warms up.
                for form in forms.values():
                    for figures in form.figures().values():
                        figures.clear()
        return forms


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args(arguments).rounds
    configure_logs("WARNING")
    forms = asyncio.run(_measure(rounds))
    one, other = forms["roles"], forms["open"]
    for name, form in forms.items():
        told = ", ".join(f"{what} {statistics.median(them):.2f}" for what, them in form.figures().items())
        print(f"{name:8}{told}")
    targets = [
        Target("p50 with roles, over open", ratios(one.p50_ms, other.p50_ms), MOST_P50, at_most=True),
        Target(
            "in order, with roles, over open", ratios(one.in_order_ms, other.in_order_ms), MOST_P50, at_most=True
        ),
        Target("large, with roles, over open", ratios(one.large_ms, other.large_ms), MOST_P50, at_most=True),
        Target("CPU of both sides with roles, over open", ratios(one.cpu_us, other.cpu_us), MOST, at_most=True),
        Target(
            "CPU of the server, over open", ratios(one.server_us, other.server_us), MOST_OF_SERVER, at_most=True
        ),
    ]
    for target in targets:
        print(target)
    measured = {name: form.figures() for name, form in forms.items()}
    result = {"machine": machine.facts(), "measured": measured, "targets": [each.as_json() for each in targets]}
    (RESULTS / "roles.json").write_text(json.dumps(result, indent=1) + "\n")
    return verdict(targets)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
