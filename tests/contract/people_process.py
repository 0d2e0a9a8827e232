"""One process of `test_people_killed`: a replica whose handler asks people, or a person who answers."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import topic
from squadron.bridge.host import Host
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.runtime.asking.answering import People
from squadron.runtime.running.context import Context
from squadron.runtime.running.parking import Waker
from squadron.runtime.telemetry.happenings import Happening, TurnEnded
from squadron.runtime.wire.envelope import AgentIdentity


class Buyer(Agent):
    """Asks before it buys, and notes each run of its handler."""

    name = "buyer"

    @topic("kill.buy", run_timeout_s=3600)
    async def buy(self, ctx: Context) -> dict[str, Any]:
        """Buy something."""
        await ctx.lite("runs", "kill").publish({"attempt": ctx.attempt})
        size = await ctx.ask_person("Which size?")
        reply = await ctx.ask_approval("shop.pay", {"size": size.value})
        return {"size": size.value, "by": size.by, "paid": reply.action, "attempt": ctx.attempt}

    @topic("kill.park", max_attempts=1)
    async def park(self, ctx: Context) -> dict[str, Any]:
        """Buy something, and hold no slot while people think; one attempt is all there is."""
        await ctx.lite("runs", "kill").publish({"attempt": ctx.attempt})
        size = await ctx.ask_person("Which size?", park=True)
        reply = await ctx.ask_approval("shop.pay", {"size": size.value}, park=True)
        return {"size": size.value, "by": size.by, "paid": reply.action, "attempt": ctx.attempt}


def tell(text: str) -> None:
    """Say something to the test; all else that is printed are logs."""
    sys.stdout.write(f"> {text}\n")
    sys.stdout.flush()


async def bridge(wiring: Wiring) -> None:
    """Wake what is parked, until killed."""
    waker = Waker(wiring.ports, wiring.caller.lite_topics)
    await waker.start()
    tell("there")
    await asyncio.Event().wait()
    await waker.aclose()


class Parks:
    """An observer that says when a task is parked."""

    def hear(self, happening: Happening) -> None:
        if isinstance(happening, TurnEnded) and happening.end == "parked":
            tell("parked")

    async def aclose(self) -> None:
        pass


async def replica(wiring: Wiring) -> None:
    """Serve until killed."""
    wiring.ports.observers.add(Parks())
    spec = AgentSpec.of(Buyer)
    host = Host(wiring, Buyer(), spec, slots=4)
    await wiring.ports.queue.declare(host.mailbox)
    await wiring.registry.advertise(spec.card())
    await host.start()
    tell("there")
    await asyncio.Event().wait()


async def person(wiring: Wiring, name: str, answers: list[str]) -> None:
    """Answer what is asked, with one answer after the other; then look on until killed."""
    people = People(wiring.ports, wiring.caller.lite_topics)
    async for news in people.follow():
        tell(news.what)
        if news.what == "asked" and answers:
            content = answers.pop(0) if news.asked.question.kind == "question" else None
            await people.answer(news.asked.query_id, content, by=name)


async def main(role: str, *arguments: str) -> None:
    """Be a replica, a bridge, or the person of a name with answers."""
    wiring = await Wiring.open(Settings.load(), AgentIdentity(id=f"{role}-{os.getpid()}"))
    await wiring.start()
    if role == "replica":
        await replica(wiring)
    elif role == "bridge":
        await bridge(wiring)
    else:
        await person(wiring, arguments[0], list(arguments[1:]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
