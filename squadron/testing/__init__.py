"""For the tests of those who write agents: a squad in memory, a clock that is turned, replies by a script.

    from squadron.testing import MemorySquad, run

    async def main() -> None:
        async with MemorySquad() as squad:
            weather = await squad.script("weather.now", {"temp": 3})
            await squad.deploy(Traveller)
            outcome = await squad.ask("travel.advise", {"city": "Oslo"})
            assert weather.asked == [{"city": "Oslo"}]

    run(main())

Nothing here is used by what it tests.
"""

from squadron.testing.memory_squad import MemorySquad
from squadron.testing.misuse import NotServedError, NoTurnedLoopError, ScriptError
from squadron.testing.script import Script
from squadron.testing.turned import TurnedLoop, now_s, pytest_asyncio_loop_factories, run, turned_time

__all__ = [
    "MemorySquad",
    "NoTurnedLoopError",
    "NotServedError",
    "Script",
    "ScriptError",
    "TurnedLoop",
    "now_s",
    "pytest_asyncio_loop_factories",
    "run",
    "turned_time",
]
