"""Replicas on Ray bid, by code that travelled, and are held to their bids."""

from __future__ import annotations

import asyncio
import os
import sys

from squadron import Agent, Bid, Settings, Squad, Terminal, bid, topic


class Thorough(Agent):
    """Takes on what is short."""

    @topic("check.thorough")
    async def check(self, text: str) -> str:
        """Check a text."""
        return f"{text}: sound"

    @bid
    def offer(self, size: int) -> Bid | None:
        """By the size of the input."""
        if size > 100:
            raise Terminal("too long")
        return Bid(confidence=0.9, eta_s=1)


class Quick(Agent):
    """Takes on everything."""

    @topic("check.quick")
    async def check(self, text: str) -> str:
        """Check a text."""
        return "looks fine"


async def test_agents_on_ray_bid_for_a_task(squad: Squad, settings: Settings) -> None:
    await squad.deploy(Thorough, Quick)

    short = await squad.negotiate("check.*", {"text": "brief"}, bids_within_s=20)
    assert short.unwrap() == "brief: sound"
    long = await squad.negotiate("check.*", {"text": "long" * 100}, bids_within_s=20)
    assert long.unwrap() == "looks fine"
    nobody = await squad.negotiate(["check.thorough"], {"text": "long" * 100}, bids_within_s=20)
    assert nobody.details["refusals"] == {"check.thorough": "too long"}

    command = [
        sys.executable,
        "-c",
        "from squadron.cli import main; main()",
        "negotiate",
        "check.*",
        "-f",
        "text=brief",
    ]
    process = await asyncio.create_subprocess_exec(
        *command, "--bids-within", "20", env=os.environ | settings.environ(), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    assert (process.returncode, told) == (0, b"brief: sound\n")
