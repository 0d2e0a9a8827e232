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
from benchmarks.targets import Target, ratios
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
#: Asker and replica do the same in both forms. The server looks each publish up, and carries it, and its answer,
#: over from one account to the other; whoever waits for it waits so much longer.
MOST, MOST_P50, MOST_OF_SERVER = 1.1, 1.25, 1.8


class EchoInARole(Agent):
    """Says it again."""

    @topic("bench.echo")
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

    async def ask(self) -> None:
        (await self.caller.ask("bench.echo", {"text": TEXT}, AskOptions())).unwrap()

    async def measure(self) -> None:
        """One round."""
        took = []
        for _ in range(ALONE):
            began = time.perf_counter()
            await self.ask()
            took.append(time.perf_counter() - began)
        self.p50_ms.append(1000 * sorted(took)[len(took) // 2])
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

    def _server_s(self) -> float:
        times = self.server.cpu_times()
        return times.user + times.system


async def _form(stack: AsyncExitStack, bridge: Wiring, replica: Wiring, asker: Wiring, server: OwnServer) -> Form:
    spec = AgentSpec.of(EchoInARole)
    patterns = tuple(each.name for each in spec.card().topics)
    await bridge.ports.queue.declare(Mailbox(spec.name, patterns, bridge.settings.lease_s))
    await bridge.registry.advertise(spec.card())
    host = Host(replica, EchoInARole(), spec, slots=AT_ONCE)
    await host.start()
    for each in (bridge, replica, asker):
        stack.push_async_callback(each.aclose)
    stack.push_async_callback(host.stop, 1.0)
    await asker.registry.catch_up()
    return Form(asker.caller, psutil.Process(server.pid))


async def _restricted(stack: AsyncExitStack, folder: Path) -> Form:
    made = RestrictedServer(folder, "bench")
    made.start()
    stack.callback(made.stop)
    places = await made.open("bridge", "bridge"), await made.open("agent", AgentSpec.of(EchoInARole).name)
    return await _form(stack, *places, await made.open("client", "client"), made.server)


async def _open(stack: AsyncExitStack, folder: Path) -> Form:
    server = OwnServer(folder)
    server.start()
    stack.callback(server.stop)
    settings = Settings(nats_url=server.url, env="bench")
    bridge, replica, asker = [
        await Wiring.open(settings, AgentIdentity(id=name), create=True) for name in ("bridge", "replica", "asker")
    ]
    return await _form(stack, bridge, replica, asker, server)


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
                    for figures in (form.p50_ms, form.cpu_us, form.server_us):
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
        p50_ms, cpu_us, server_us = map(statistics.median, (form.p50_ms, form.cpu_us, form.server_us))
        print(
            f"{name:8}p50 {p50_ms:6.2f} ms, CPU {cpu_us:6.0f} us of both sides, {server_us:6.0f} us of the server"
        )
    targets = [
        Target("p50 with roles, over open", ratios(one.p50_ms, other.p50_ms), MOST_P50, at_most=True),
        Target("CPU of both sides with roles, over open", ratios(one.cpu_us, other.cpu_us), MOST, at_most=True),
        Target(
            "CPU of the server, over open", ratios(one.server_us, other.server_us), MOST_OF_SERVER, at_most=True
        ),
    ]
    for target in targets:
        print(target)
    measured = {
        name: {"p50_ms": form.p50_ms, "cpu_us": form.cpu_us, "server_us": form.server_us}
        for name, form in forms.items()
    }
    result = {"machine": machine.facts(), "measured": measured, "targets": [each.as_json() for each in targets]}
    (RESULTS / "roles.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(target.held for target in targets) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
