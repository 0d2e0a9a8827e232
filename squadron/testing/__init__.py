"""For the tests of those who write agents: a squad in memory, a turned clock, replies and models by a script.

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

from squadron.testing.any_model import AnyModel
from squadron.testing.function_model import FunctionModel
from squadron.testing.memory_squad import MemorySquad
from squadron.testing.misuse import NotServedError, NoTurnedLoopError, ScriptError
from squadron.testing.people_script import PeopleScript
from squadron.testing.replayed import replay
from squadron.testing.script import Script
from squadron.testing.scripted_model import ScriptedModel
from squadron.testing.turned import TurnedLoop, now_s, pytest_asyncio_loop_factories, run, turned_time

__all__ = [
    "AnyModel",
    "FunctionModel",
    "MemorySquad",
    "NoTurnedLoopError",
    "NotServedError",
    "PeopleScript",
    "Script",
    "ScriptError",
    "ScriptedModel",
    "TurnedLoop",
    "now_s",
    "pytest_asyncio_loop_factories",
    "replay",
    "run",
    "turned_time",
]
