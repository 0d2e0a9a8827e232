"""`squadron.testing`: a squad in memory that breaks on demand, scripts, and a clock that is turned."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from squadron import Agent, Context, Retry, Squad, Terminal, on, on_durable, topic
from squadron.client.looking import Looking
from squadron.client.talking import Talking
from squadron.runtime.errors import (
    BusUnavailableError,
    DeployError,
    InvalidAgentError,
    InvalidMessageError,
    RouteConflictError,
    SquadClosedError,
)
from squadron.runtime.ports.bus import Note
from squadron.runtime.wire.envelope import AgentMessage
from squadron.runtime.wire.outcome import Answer, DeadLettered, Failed, Rejected, Result, TimedOut, Undeliverable
from squadron.testing import MemorySquad, NotServedError, NoTurnedLoopError, ScriptError, now_s, run, turned_time


@pytest.fixture
async def squad() -> AsyncIterator[MemorySquad]:
    async with MemorySquad() as made:
        yield made


class Clerk(Agent):
    """Files forms."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.kept: list[object] = []
        self.stopped = False

    @topic("form.file")
    async def file(self, text: str) -> str:
        """File a form."""
        return text.upper()

    @topic("form.count")
    async def count(self, most: int) -> AsyncIterator[int]:
        for number in range(most):
            yield number

    @topic("form.lose", max_attempts=2)
    async def lose(self) -> None:
        raise ValueError("lost it")

    @on("news.*")
    async def hear(self, message: object) -> None:
        self.heard.append(message.payload.content)  # type: ignore[attr-defined]

    @on_durable("orders.*")
    async def keep(self, message: object) -> None:
        self.kept.append(message.payload.content)  # type: ignore[attr-defined]

    async def on_stop(self) -> None:
        self.stopped = True


class Slow(Agent):
    """Takes an hour."""

    def __init__(self, begun: list[str] | None = None) -> None:
        self.begun = [] if begun is None else begun

    @topic("slow.work", run_timeout_s=7200)
    async def work(self, context: Context) -> int:
        self.begun.append(context.message.id)
        await asyncio.sleep(3600)
        return len(self.begun)


async def until(it_holds: Callable[[], object]) -> None:
    """Wait for a state that nobody announces."""
    give_up_at = now_s() + 600
    while not it_holds():
        assert now_s() < give_up_at
        await asyncio.sleep(0.05)


# --- talking -----------------------------------------------------------------------------------------


def test_it_talks_as_a_squad_does_by_the_same_code() -> None:
    said = {name for name in vars(Talking) | vars(Looking) if not name.startswith("_")}
    assert said >= {"ask", "submit", "stream", "publish", "subscribe", "publish_durable", "subscribe_durable"}
    assert said >= {"lite", "follow", "discover", "topics", "dead_letters", "run", "resume"}
    for name in said - {"deploy"}:
        assert getattr(Squad, name) is getattr(MemorySquad, name)


async def test_a_task_ends_as_its_handler_says(squad: MemorySquad) -> None:
    await squad.deploy(Clerk)

    assert (await squad.ask("form.file", {"text": "a"})).unwrap() == "A"
    assert isinstance(await squad.ask("form.file", {"text": 3}), Rejected)
    assert isinstance(await squad.ask("form.burn"), Undeliverable)
    assert [chunk async for chunk in squad.stream("form.count", {"most": 3})] == [0, 1, 2]
    handle = await squad.submit("form.file", {"text": "b"})
    assert (await squad.resume(handle.ticket).outcome()).unwrap() == "B"
    assert {each.topic.name for each in squad.topics()} == {"form.file", "form.count", "form.lose"}


async def test_a_task_that_is_given_up_lies_among_the_dead_letters_and_is_put_back(squad: MemorySquad) -> None:
    await squad.deploy(Clerk)
    outcome = await squad.ask("form.lose")
    assert isinstance(outcome, DeadLettered)
    (letter,) = await squad.dead_letters.list()
    assert letter.id == outcome.task_id
    assert (await squad.dead_letters.redrive(letter.id)).ids == (letter.id,)


async def test_events_and_durable_events_reach_handlers_and_subscribers(squad: MemorySquad) -> None:
    clerk = Clerk()
    await squad.deploy(clerk)
    events = await squad.subscribe("news.*")
    orders = await squad.subscribe_durable("book", "orders.*")

    await squad.publish("news.local", {"n": 1})
    await squad.publish_durable("orders.new", {"n": 2})

    assert (await events.next(within_s=1)).payload.content == {"n": 1}
    assert (await orders.next(within_s=1)).message.payload.content == {"n": 2}
    await until(lambda: clerk.heard and clerk.kept)
    assert (clerk.heard, clerk.kept) == ([{"n": 1}], [{"n": 2}])


class Herald(Agent):
    """Tells everybody."""

    @topic("herald.says")
    async def says(self, context: Context) -> int:
        await context.publish("news.local", "said")
        return await context.publish_durable("orders.new", "said", event_id="one")

    @topic("herald.shouts")
    def shouts(self, context: Context) -> int:
        context.sync.publish("news.local", "shouted")
        return context.sync.publish_durable("orders.new", "shouted", event_id="two")


async def test_handlers_publish_events_and_durable_events(squad: MemorySquad) -> None:
    await squad.deploy(Herald)
    heard, kept = await squad.subscribe("news.*"), await squad.subscribe_durable("audit", "orders.*")

    seqs = [(await squad.ask(f"herald.{how}")).unwrap() for how in ("says", "shouts")]

    assert [(await heard.next(within_s=30)).payload.content for _ in seqs] == ["said", "shouted"]
    stored = []
    for _ in seqs:
        stored.append(await kept.next(within_s=30))
        await kept.settle()
    assert [(event.seq, event.message.id) for event in stored] == [(seqs[0], "one"), (seqs[1], "two")]


async def test_a_durable_event_waits_for_an_agent_that_is_away(squad: MemorySquad) -> None:
    first, second = Clerk(), Clerk()
    await squad.deploy(first)
    await squad.undeploy(Clerk)
    assert first.stopped
    await squad.publish_durable("orders.new", 1)
    await squad.deploy(second)
    await until(lambda: second.kept == [1])


async def test_lite_topics_are_published_read_and_followed(squad: MemorySquad) -> None:
    room = squad.lite("room", "me")
    await room.publish("hello")
    async with squad.follow("me") as feed:
        await feed.add("room", "first")
        async for _, items in feed:
            assert [item.content for item in items] == ["hello"]
            break
    await room.close()
    assert [message.content async for message in room.read("first")] == []


async def test_a_goal_is_pursued_with_no_model(squad: MemorySquad) -> None:
    await squad.deploy(Clerk)
    plan = [[{"id": "one", "intent": "file a form", "arguments": {"text": "x"}}]]
    seen: list[object] = []
    outcome = await squad.run("file x", plan=plan, on_event=seen.append)
    assert isinstance(outcome, Result), outcome
    assert "X" in str(outcome.data)
    assert seen


# --- agents ------------------------------------------------------------------------------------------


async def test_instances_are_replicas_each_and_the_same_name_again_replaces_them(squad: MemorySquad) -> None:
    old = [Clerk(), Clerk()]
    await squad.deploy(*old)
    assert len(squad._wiring.registry.replicas("clerk")) == 2
    await squad.deploy(Clerk, replicas=3)
    assert [each.stopped for each in old] == [True, True]
    assert len(squad._wiring.registry.replicas("clerk")) == 3
    assert (await squad.ask("form.file", {"text": "a"})).unwrap() == "A"


async def test_what_waits_for_an_agent_that_was_taken_away_is_kept(squad: MemorySquad) -> None:
    slow = Slow()
    slow_one = type("SlowOne", (Slow,), {"slots": 1})
    await squad.deploy(slow_one())
    first, second = [await squad.submit("slow.work", within_s=90_000) for _ in range(2)]
    await squad.undeploy(slow_one)
    assert not first.done
    await squad.deploy(slow)
    assert (await second.outcome()).ok
    assert (await first.outcome()).ok


async def test_a_replica_that_is_killed_settles_nothing_and_another_takes_its_task(squad: MemorySquad) -> None:
    pair = Slow(), Slow()
    await squad.deploy(*pair)
    handle = await squad.submit("slow.work", within_s=90_000)
    await until(lambda: pair[0].begun or pair[1].begun)
    busy, idle = pair if pair[0].begun else pair[::-1]

    assert await squad.kill(busy) in {"slow-1", "slow-2"}
    with pytest.raises(NotServedError, match="replicas=2"):
        await squad.kill(busy)
    assert not handle.done

    outcome = await handle.outcome()
    assert (outcome.unwrap(), outcome.attempt) == (1, 2)
    assert busy.begun == idle.begun == [handle.task_id]
    await squad.kill("slow")
    with pytest.raises(NotServedError, match="is left"):
        await squad.kill(Slow)


async def test_of_a_killed_replica_nothing_is_heard_any_more(squad: MemorySquad) -> None:
    said: list[str] = []

    class Stubborn(Agent):
        @topic("stub.work")
        async def work(self, context: Context) -> str:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                said.append("cancelled")
                with pytest.raises(BusUnavailableError):
                    await context.publish_durable("orders.stub", "last words")
            return "done all the same"

        async def on_stop(self) -> None:
            said.append("stopped")

    orders = await squad.subscribe_durable("book", "orders.*")
    await squad.deploy(Stubborn)
    handle = await squad.submit("stub.work", within_s=100)
    await asyncio.sleep(1)
    await squad.kill(Stubborn)

    assert said == ["cancelled"]
    assert isinstance(await handle.outcome(), TimedOut)
    with pytest.raises(TimeoutError):
        await orders.next(within_s=10)
    # Its presence has lapsed by then.
    assert isinstance(await squad.ask("stub.work"), Undeliverable)


# --- scripts -----------------------------------------------------------------------------------------


async def test_a_script_replies_in_order_and_remembers_what_it_was_asked(squad: MemorySquad) -> None:
    async def later(content: dict[str, int]) -> int:
        return content["n"] + 1

    script = await squad.script(
        "weather.now",
        {"temp": 3},
        Answer("mild", confidence=0.5),
        Failed(reason="no stations"),
        Terminal("broken"),
        Retry("busy", after_s=60),
        lambda content: [content],
        later,
        description="How the weather is.",
    )
    assert (await squad.ask("weather.now", {"city": "Oslo"})).unwrap() == {"temp": 3}
    sure = await squad.ask("weather.now", "anything")
    assert isinstance(sure, Result)
    assert (sure.data, sure.confidence) == ("mild", 0.5)
    assert [(await squad.ask("weather.now")).reason for _ in range(2)] == ["no stations", "broken"]
    before = now_s()
    assert (await squad.ask("weather.now", 7, within_s=100)).unwrap() == [7]
    assert now_s() - before >= 60
    assert (await squad.ask("weather.now", {"n": 1})).unwrap() == 2
    assert script.asked == [{"city": "Oslo"}, "anything", {}, {}, 7, 7, {"n": 1}]
    assert script.left == 0
    assert squad.discover("what is the weather like?")[0].topic.name == "weather.now"


async def test_a_script_that_has_run_out_says_so(squad: MemorySquad) -> None:
    await squad.script("weather.now", 3)
    assert (await squad.ask("weather.now")).ok
    outcome = await squad.ask("weather.now", {"city": "Rome"})
    assert isinstance(outcome, Failed)
    assert "'weather.now'" in outcome.reason
    assert "Rome" in outcome.reason
    again = await squad.script("weather.now", 4)
    assert (await squad.ask("weather.now")).unwrap() == 4
    assert again.asked == [{}]


async def test_a_plain_function_as_a_reply_that_raises_stop_iteration_fails_as_a_handler_does(
    squad: MemorySquad,
) -> None:
    await squad.script("weather.now", *[lambda content: next(iter([]))] * 3)
    outcome = await squad.ask("weather.now", within_s=100)
    assert isinstance(outcome, DeadLettered)
    assert "StopIteration" in outcome.reason


async def test_topics_of_any_name_have_scripts_of_their_own(squad: MemorySquad) -> None:
    names = ["a.b-c", "a-b.c", "c-any.any", "c.*", f"{'x' * 60}.{'y' * 60}"]
    for number, name in enumerate(names):
        await squad.script(name, number)
    assert [(await squad.ask(name.replace("*", "else"))).unwrap() for name in names] == [0, 1, 2, 3, 4]


async def test_what_no_handler_can_reply_is_refused_at_once(squad: MemorySquad) -> None:
    with pytest.raises(ScriptError, match="TimedOut"):
        await squad.script("weather.now", TimedOut())
    await squad.deploy(Clerk)
    with pytest.raises(RouteConflictError, match="clerk"):
        await squad.script("form.file", 3)
    assert (await squad.ask("form.file", {"text": "a"})).unwrap() == "A"


# --- a bus that is cut -------------------------------------------------------------------------------


async def test_while_the_bus_is_cut_nothing_is_heard_and_nothing_is_lost_when_it_is_healed(
    squad: MemorySquad,
) -> None:
    begun: list[str] = []
    await squad.deploy(Slow(begun), Clerk())
    events = await squad.subscribe("news.*")
    handle = await squad.submit("slow.work", within_s=90_000)
    await until(lambda: begun)

    squad.cut()
    with pytest.raises(BusUnavailableError, match="cut"):
        await squad.publish_durable("orders.new", 1)
    with pytest.raises(BusUnavailableError, match="cut"):
        await squad.script("weather.now", 3)
    assert isinstance(await squad.ask("form.file", {"text": "a"}, within_s=30), Undeliverable)
    waiting = asyncio.create_task(squad.ask("form.file", {"text": "b"}, within_s=3600))
    await squad.publish("news.local", "sent when it is healed")
    with pytest.raises(TimeoutError):
        await events.next(within_s=60)
    squad.heal()

    assert (await waiting).unwrap() == "B"
    assert (await events.next(within_s=1)).payload.content == "sent when it is healed"
    # Its lease had lapsed: the same replica had it already, and goes on.
    assert (await handle.outcome()).unwrap() == 1


async def test_an_outcome_that_could_not_be_stored_is_not_lost(squad: MemorySquad) -> None:
    begun: list[str] = []
    await squad.deploy(Slow(begun))
    handle = await squad.submit("slow.work", within_s=90_000)
    await until(lambda: begun)
    squad.cut()
    await asyncio.sleep(3700)
    squad.heal()
    assert (await handle.outcome()).ok


# --- misuse, and time --------------------------------------------------------------------------------


async def test_a_squad_is_used_while_it_is_open() -> None:
    squad = MemorySquad()
    with pytest.raises(SquadClosedError, match="async with"):
        await squad.ask("form.file")
    with pytest.raises(SquadClosedError, match="async with"):
        squad.cut()
    async with squad:
        pass
    with pytest.raises(SquadClosedError):
        await squad.deploy(Clerk)
    with pytest.raises(SquadClosedError, match="another"):
        async with squad:
            pass
    await squad.aclose()


async def test_who_reads_when_a_squad_is_closed_is_told() -> None:
    async with MemorySquad() as squad:
        await squad.deploy(Slow)
        stream, events = squad.stream("slow.work"), squad.stream("slow.work").events()
        entries = squad.lite("one").read()
        told = [asyncio.create_task(_all(each)) for each in (stream, events)]
        ended = asyncio.create_task(_all(entries))
        await asyncio.sleep(1.0)

    async with asyncio.timeout(1.0):
        assert await ended == []
        errors = await asyncio.gather(*told, return_exceptions=True)
    assert [type(each) for each in errors] == [SquadClosedError, SquadClosedError]


async def _all(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def test_what_can_not_be_deployed_says_why(squad: MemorySquad) -> None:
    class Broken(Agent):
        @topic("broken.work")
        async def work(self) -> None: ...

        async def on_start(self) -> None:
            raise OSError("no licence")

    with pytest.raises(InvalidAgentError, match="an instance for each replica"):
        await squad.deploy(Clerk(), replicas=2)
    with pytest.raises(InvalidAgentError):
        await squad.deploy("clerk")  # type: ignore[arg-type]
    with pytest.raises(DeployError, match="no licence"):
        await squad.deploy(Broken)
    with pytest.raises(NotServedError, match="there is broken"):
        await squad.kill(Clerk)
    with pytest.raises(NotServedError, match="'nobody'"):
        await squad.undeploy("nobody")


async def test_two_classes_of_one_name_are_no_deploy_of_either_squad(squad: MemorySquad) -> None:
    other = type("Other", (Clerk,), {"name": "clerk"})
    place: Any = squad._place
    for each in (squad, Squad(place, squad.settings)):
        with pytest.raises(InvalidAgentError, match="Other and Clerk are both named 'clerk'"):
            await each.deploy(Clerk, other)


def test_time_is_turned_only_on_a_loop_that_can() -> None:
    async def opened(**how: bool) -> str:
        async with MemorySquad(**how) as squad:
            await squad.deploy(Clerk)
            return str((await squad.ask("form.file", {"text": "a"})).unwrap())

    with pytest.raises(NoTurnedLoopError, match="pytest_asyncio_loop_factories"):
        asyncio.run(opened())
    assert asyncio.run(opened(turned=False)) == "A"
    assert run(opened()) == "A"


async def test_a_day_passes_in_no_time_and_what_ends_in_it_ends() -> None:
    async with MemorySquad(heartbeat_s=3600.0) as squad:
        await squad.deploy(Slow())
        before = now_s()
        assert isinstance(await squad.ask("slow.work", within_s=60), TimedOut)
        assert (await squad.ask("slow.work", within_s=90_000)).ok
        assert 3600 <= now_s() - before < 90_000
        with turned_time():
            await asyncio.sleep(1)


async def test_all_that_is_sent_is_of_the_turned_clock(squad: MemorySquad) -> None:
    sent: list[AgentMessage] = []

    def hear(note: Note) -> None:
        with contextlib.suppress(InvalidMessageError):
            sent.append(AgentMessage.decode(note.data))

    await squad._place.ports.bus.subscribe("agents.>", hear)
    await asyncio.sleep(3600)
    before_s = squad._place.ports.clock.time()
    sent.clear()
    await squad.deploy(Clerk, Slow)
    assert (await squad.ask("form.file", {"text": "a"})).ok
    assert [chunk async for chunk in squad.stream("form.count", {"most": 3})] == [0, 1, 2]
    assert not (await squad.ask("form.lose")).ok
    handle = await squad.submit("slow.work")
    await squad.undeploy(Slow)
    await handle.cancel()
    await squad.publish("news.local", 1)
    await squad.publish_durable("orders.new", 2)
    await squad.lite("room", "me").publish("hello")
    await asyncio.sleep(60)

    assert {each.type for each in sent} == {"task", "result", "event", "stream"}
    assert [each for each in sent if each.timestamp < before_s] == []


def test_neither_ray_nor_nats_is_loaded_for_it() -> None:
    code = "import sys, squadron.testing; sys.exit(bool({'ray', 'nats'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_recipe_for_pytest_works_in_a_project_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from squadron.testing import pytest_asyncio_loop_factories\n")
    (tmp_path / "test_it.py").write_text(
        "import asyncio\n"
        "from squadron.testing import MemorySquad\n\n\n"
        "async def test_an_hour():\n"
        "    async with MemorySquad() as squad:\n"
        "        await squad.script('price.of', 3)\n"
        "        await asyncio.sleep(3600)\n"
        "        assert (await squad.ask('price.of')).unwrap() == 3\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "."]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stdout


async def test_a_squad_says_nothing_on_standard_output_and_leaves_the_logs_as_they_were(
    capsys: pytest.CaptureFixture[str],
) -> None:
    structlog.reset_defaults()
    async with MemorySquad() as squad:
        await squad.script("any.thing", 1)
        assert (await squad.ask("any.thing")).ok

    assert not structlog.is_configured()
    assert capsys.readouterr() == ("", "")
