"""Nothing hangs: what blocks or waits ends when its squad is closed, in whatever way that comes about."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.bridge import daemons
from squadron.bridge.jetstream.link import embedded
from squadron.bridge.jetstream.wiring import Wiring
from squadron.bridge.serve import local
from squadron.client.blocking import SyncSquad
from squadron.client.opening import Opening
from squadron.client.squad import Squad
from squadron.config import Settings
from squadron.runtime.asking.handle import Handle
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import (
    BlockingCallError,
    BusUnavailableError,
    ClusterUnavailableError,
    SquadClosedError,
)
from squadron.runtime.lite import follower
from squadron.runtime.streams import trail
from squadron.runtime.wire.envelope import AgentIdentity
from tests.contract.conftest import Replica, Serve, World, peer_of, until

#: Only a hang takes so long, in seconds.
HANG_S = 60.0


class Sleeper(Agent):
    """Never done."""

    def __init__(self) -> None:
        self.began = asyncio.Event()

    @topic("sleep.deep")
    async def deep(self) -> AsyncIterator[int]:
        """Sleep."""
        yield 1
        self.began.set()
        await asyncio.sleep(600)


async def _open(settings: Settings) -> Squad:
    return Squad(await Wiring.open(settings, AgentIdentity(id="script", type="test"), create=True), settings)


@pytest.fixture
def squad(settings: Settings) -> Iterator[SyncSquad]:
    opened = Opening(lambda: _open(settings)).__enter__()
    yield opened
    opened.close()


@pytest.fixture
async def async_squad(settings: Settings) -> AsyncIterator[Squad]:
    opened = await _open(settings)
    yield opened
    await opened.aclose()


# --- calls that block ---------------------------------------------------------------------------------

#: Each way to block, by what it is called on.
BLOCKING: dict[str, Callable[[SyncSquad], Any]] = {
    "ask": lambda squad: squad.ask("no.body"),
    "submit": lambda squad: squad.submit("no.body"),
    "status": lambda squad: squad.status(),
    "deploy": lambda squad: squad.deploy(),
    "undeploy": lambda squad: squad.undeploy("nobody"),
    "scale": lambda squad: squad.scale("nobody", 1),
    "drain": lambda squad: squad.drain(),
    "subscribe": lambda squad: squad.subscribe("a.*"),
    "subscribe_durable": lambda squad: squad.subscribe_durable("me", "a.*"),
    "forget_subscription": lambda squad: squad.forget_subscription("me"),
    "publish": lambda squad: squad.publish("a.b", 1),
    "publish_durable": lambda squad: squad.publish_durable("a.b", 1),
    "discover": lambda squad: squad.discover("anything"),
    "topics": lambda squad: squad.topics(),
    "run": lambda squad: squad.run("anything"),
    "stream": lambda squad: next(squad.stream("no.body")),
    "stream outcome": lambda squad: squad.stream("no.body").outcome(),
    "lite": lambda squad: squad.lite("a").publish(1),
    "lite read": lambda squad: next(squad.lite("a").read()),
    "follow": lambda squad: squad.follow("a").__enter__(),
    "dead letters": lambda squad: squad.dead_letters.list(),
    "questions": lambda squad: squad.questions(),
    "question": lambda squad: squad.question("q1"),
    "follow questions": lambda squad: next(squad.follow_questions()),
    "answer": lambda squad: squad.answer("q1", "yes"),
}


@pytest.mark.parametrize("call", BLOCKING.values(), ids=BLOCKING)
def test_a_call_after_the_end_is_refused(settings: Settings, call: Callable[[SyncSquad], Any]) -> None:
    with Opening(lambda: _open(settings)) as squad:
        pass
    squad.close()
    with pytest.raises(SquadClosedError, match=r"Squad\.up\(\)"):
        call(squad)


def test_what_was_taken_from_a_squad_is_refused_after_its_end_as_well(settings: Settings) -> None:
    squad = Opening(lambda: _open(settings)).__enter__()
    lite, letters, stream = squad.lite("one"), squad.dead_letters, squad.stream("no.body")
    reader, feed = lite.read(), squad.follow("two")
    squad.close()
    calls = [lambda: lite.publish(1), letters.list, stream.outcome, lambda: next(stream), lambda: next(reader)]
    for call in [*calls, lambda: feed.__enter__(), lambda: lite.close()]:
        with pytest.raises(SquadClosedError):
            call()
    # What only cleans up has nothing to do.
    reader.close()
    feed.__exit__()


def _in_threads(*calls: Callable[[], Any]) -> tuple[list[threading.Thread], list[BaseException | Any]]:
    ended: list[BaseException | Any] = []

    def run(call: Callable[[], Any]) -> None:
        try:
            ended.append(call())
        except BaseException as error:
            ended.append(error)

    threads = [threading.Thread(target=run, args=[call], daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    return threads, ended


def test_calls_of_other_threads_end_with_the_squad(squad: SyncSquad, serve_in: Callable[[Agent], None]) -> None:
    sleeper = Sleeper()
    serve_in(sleeper)
    submitted = squad.submit("sleep.deep")
    stream = squad.stream("sleep.deep")
    assert next(stream) == 1
    events, durable = squad.subscribe("a.*"), squad.subscribe_durable("me", "a.*")
    reader, feed = squad.lite("one").read(), squad.follow("two")
    feed.__enter__()
    asks = [lambda: squad.ask("sleep.deep"), lambda: submitted.outcome(), stream.outcome]
    ends = [lambda: list(events), lambda: list(durable), lambda: list(reader), lambda: list(feed)]
    threads, ended = _in_threads(*asks, *ends, lambda: list(stream), lambda: squad.deploy(Sleeper))
    squad.ask("no.body", within_s=0.3)

    squad.close()

    for thread in threads:
        thread.join(HANG_S)
        assert not thread.is_alive()
    assert len(ended) == len(threads)
    assert all(each == [] or isinstance(each, SquadClosedError) for each in ended), ended


@pytest.fixture
def serve_in(settings: Settings) -> Iterator[Callable[[Agent], None]]:
    """Serve an agent from a thread that stands for another process."""
    with contextlib.ExitStack() as stack:

        def start(agent: Agent) -> None:
            ready, over = threading.Event(), threading.Event()

            async def serve() -> None:
                wiring = await Wiring.open(settings, AgentIdentity(id="replica", type="test"), create=True)
                replica = Replica(peer_of(wiring), agent)
                await replica.start()
                ready.set()
                while not over.is_set():
                    await asyncio.sleep(0.01)
                await replica.pump.aclose()
                await replica.turns.aclose()
                await wiring.aclose()

            thread = threading.Thread(target=lambda: asyncio.run(serve()))
            thread.start()
            stack.callback(thread.join)
            stack.callback(over.set)
            assert ready.wait(HANG_S)

        yield start


async def test_where_a_loop_runs_a_blocking_call_is_refused(settings: Settings) -> None:
    with pytest.raises(BlockingCallError, match="async with"):
        Opening(lambda: _open(settings)).__enter__()
    with pytest.raises(BlockingCallError), Squad.up(settings):
        pass
    squad = await asyncio.to_thread(Opening(lambda: _open(settings)).__enter__)
    with pytest.raises(BlockingCallError, match="async with"):
        squad.ask("no.body")
    await asyncio.to_thread(squad.close)


def test_a_callback_on_the_squads_own_loop_that_would_wait_for_itself_is_refused(squad: SyncSquad) -> None:
    async def callback() -> None:
        for call in (lambda: squad.ask("no.body"), squad.close):
            with pytest.raises(BlockingCallError):
                call()

    squad._wait(callback())
    assert squad.topics() == []


def test_an_iterator_that_is_dropped_holds_nobody(squad: SyncSquad) -> None:
    dropped = squad.subscribe("a.*")
    squad.publish("a.b", 1)
    assert next(dropped).payload.content == 1
    del dropped
    gc.collect()
    # By whichever thread the collector is run.
    dropped = squad.subscribe("a.*")
    squad.publish("a.b", 2)
    assert next(dropped).payload.content == 2
    held = [dropped]
    del dropped

    async def drop() -> None:
        held.clear()
        gc.collect()

    squad._wait(drop())
    squad.publish("a.b", 3)


# --- programs of their own ----------------------------------------------------------------------------

HEAD = """
    import asyncio, os, pathlib, sys, threading
    from squadron.bridge.jetstream.wiring import Wiring
    from squadron.config import Settings
    from squadron.runtime.wire.envelope import AgentIdentity
    from squadron.runtime.errors import SquadClosedError
    from squadron.client.opening import Opening
    from squadron.client.squad import Squad

    settings = Settings.load({}, home=pathlib.Path(sys.argv[1]), env=sys.argv[2])

    async def open_squad():
        return Squad(await Wiring.open(settings, AgentIdentity(id="script", type="test"), create=True), settings)
"""


def _run(program: str, settings: Settings) -> str:
    """Run a program to its end; it is given up when it hangs."""
    code = textwrap.dedent(HEAD) + textwrap.dedent(program)
    command = [sys.executable, "-c", code, str(settings.home), settings.env]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "never retrieved" not in done.stderr
    return done.stdout


def test_a_process_that_holds_a_started_iterator_ends(settings: Settings) -> None:
    told = _run(
        """
        with Opening(open_squad) as squad:
            events, durable = squad.subscribe("a.*"), squad.subscribe_durable("me", "a.*")
            reader, feed = squad.lite("one").read(), squad.follow("two").__enter__()
            feed.add_all()
            ready = iter(feed)
            squad.publish("a.b", 1)
            squad.publish_durable("a.b", 2)
            squad.lite("one").publish(3)
            squad.lite("three", "two").publish(4)
            print([next(events).payload.content for _ in range(2)], next(durable).message.payload.content)
            print(next(reader).content, next(ready)[1][0].content)
        """,
        settings,
    )
    assert told.split("\n")[1] == "3 4"


def test_a_process_that_never_closes_its_squad_ends(settings: Settings) -> None:
    told = _run(
        """
        squad = Opening(open_squad).__enter__()
        events = squad.subscribe("a.*")
        squad.publish("a.b", 1)
        print(next(events).payload.content)

        def wait():
            try:
                list(squad.subscribe("b.*"))
            except SquadClosedError:
                pass

        threading.Thread(target=wait, daemon=True).start()
        """,
        settings,
    )
    assert told == "1\n"


def test_a_forked_process_is_told_and_leaves_its_parent_alone(settings: Settings) -> None:
    told = _run(
        """
        with Opening(open_squad) as squad:
            lite, events = squad.lite("one"), squad.subscribe("a.*")
            squad.publish("a.b", 1)
            next(events)
            child = os.fork()
            if child == 0:
                for call in (lambda: squad.ask("no.body"), lambda: next(events), lambda: lite.publish(1)):
                    try:
                        call()
                    except SquadClosedError as error:
                        print("forked" in str(error), "Squad.connect()" in error.hint, flush=True)
                # A connection of its own works.
                with Opening(open_squad) as own:
                    print(own.lite("two").publish("hello") > 0, flush=True)
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
            print(squad.ask("no.body").kind, next(squad.lite("two").read()).content)
        """,
        settings,
    )
    assert told.splitlines() == [*["True True"] * 3, "True", "undeliverable hello"]


def test_a_forked_process_is_told_in_async_code_too(settings: Settings) -> None:
    told = _run(
        """
        async def main():
            async with Opening(open_squad) as squad:
                child = os.fork()
                if child == 0:
                    for call in (lambda: squad.ask("no.body"), lambda: squad.status()):
                        try:
                            await call()
                        except SquadClosedError as error:
                            print("forked" in str(error), flush=True)
                    await squad.aclose()
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
                print((await squad.ask("no.body")).kind)

        asyncio.run(main())
        """,
        settings,
    )
    assert told.splitlines() == ["True", "True", "undeliverable"]


# --- asynchronous code --------------------------------------------------------------------------------


async def test_an_ask_that_waits_ends_with_its_caller(world: World, serve: Serve) -> None:
    sleeper = Sleeper()
    await serve(sleeper)
    peer = await world.join("asker")
    handle = await peer.caller.submit("sleep.deep", {})
    waiting: list[Coroutine[Any, Any, Any]] = [
        peer.caller.ask("sleep.deep", {}, AskOptions(within_s=600)),
        handle.outcome(),
        _all(handle.chunks()),
    ]
    tasks = [asyncio.create_task(each) for each in waiting]
    await sleeper.began.wait()

    await peer.caller.aclose()
    for task in tasks[:2]:
        with pytest.raises(SquadClosedError, match=r"squad\.resume"):
            await task
    tasks[2].cancel()

    # The task goes on: another one has its ticket.
    other = await world.join("other")
    assert not other.caller.resume(handle.ticket).done


async def _all(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def test_iterations_end_with_their_squad(
    async_squad: Squad, serve_in: Callable[[Agent], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # They are told, and don't find out when they next make sure that they missed nothing.
    monkeypatch.setattr(trail, "UNHEARD_S", 10 * HANG_S)
    monkeypatch.setattr(follower, "UNHEARD_S", 10 * HANG_S)
    squad = async_squad
    await asyncio.to_thread(serve_in, Sleeper())
    events, durable = await squad.subscribe("a.*"), await squad.subscribe_durable("me", "a.*")
    feed = squad.follow("two")
    await feed.__aenter__()
    served, stream = squad.follow("three"), squad.stream("sleep.deep")
    await served.__aenter__()
    readers = [squad.lite("one").read(start) for start in ("first", "new")]
    silent = [_all(each) for each in (events, durable, feed, *readers)]

    async def handle(*_: object) -> None: ...

    told = [_all(stream), _all(squad.stream("sleep.deep").events()), squad.ask("sleep.deep"), stream.outcome()]
    silent.append(served.serve(handle))  # type: ignore[arg-type]
    tasks = [asyncio.create_task(each) for each in (*silent, *told)]
    # All are on their way, and an event is heard by none of them any more.
    await squad.ask("no.body", within_s=0.3)

    await squad.aclose()
    async with asyncio.timeout(HANG_S):
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(not each for each in ended[: len(silent)]), ended
    assert all(isinstance(each, SquadClosedError) for each in ended[len(silent) :]), ended
    # Who asks again hears the same.
    assert await _all(aiter(events)) == []
    with pytest.raises(SquadClosedError):
        await squad.ask("no.body")


@pytest.fixture
def own_home(tmp_path: Path) -> Iterator[Path]:
    """The home of a server that the test may stop."""
    yield tmp_path / "home"
    embedded.stop(tmp_path / "home")


async def test_closing_ends_what_waits_for_a_server_that_is_away(own_home: Path) -> None:
    settings = Settings.load({}, home=own_home)
    squad = await _open(settings)
    connection = squad._wiring.connection
    await asyncio.to_thread(embedded.stop, own_home)
    calls: list[Coroutine[Any, Any, Any]] = [
        squad.publish_durable("a.b", 1),
        _all(squad.lite("one").read()),
        squad.lite("one").publish(2),
        _heard(squad),
        squad.status(),
        squad.dead_letters.list(),
        _a_handle(squad).outcome(),
    ]
    tasks = [asyncio.create_task(each) for each in calls]

    async def down() -> bool:
        return not connection.is_connected

    await until(down)
    await asyncio.sleep(0)

    await squad.aclose()
    async with asyncio.timeout(HANG_S):
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    # Some were told before that the server is away.
    assert all(not each or isinstance(each, SquadClosedError | BusUnavailableError) for each in ended), ended
    assert connection.client.is_closed
    await squad.aclose()


async def _heard(squad: Squad) -> list[Any]:
    return await _all(aiter(await squad.subscribe("a.*")))


def _a_handle(squad: Squad) -> Handle:
    caller = squad._wiring.caller
    ticket = {"task": "t", "topic": "a.b", "replyTo": f"agents.{squad.settings.env}.lite.me.t"}
    return caller.resume(json.dumps(ticket | {"deadline": int((time.time() + 600) * 1000)}))


class _Failing:
    """A subscription that can't be ended."""

    async def aclose(self) -> None:
        raise RuntimeError("it can't be ended")


async def test_a_step_that_fails_keeps_none_of_the_others_from_closing(async_squad: Squad, own_home: Path) -> None:
    squad = async_squad
    await asyncio.to_thread(embedded.ensure, own_home)
    # As if it had been started by this squad.
    squad._servers.settings = Settings.load({}, home=own_home)
    squad._servers.started.add("nats")
    wiring = squad._wiring
    failed = asyncio.get_running_loop().create_future()
    failed.set_result(_Failing())
    wiring.caller.hearing._subscriptions["broken"] = failed
    squad._heard.add(broken := _Failing())  # type: ignore[arg-type]

    with pytest.raises(RuntimeError):
        await squad.aclose()

    assert wiring.connection.client.is_closed
    assert embedded.find(own_home) is None
    del wiring.caller.hearing._subscriptions["broken"], broken
    await squad.aclose()


async def test_a_close_that_is_cancelled_closes_all_the_same(async_squad: Squad, own_home: Path) -> None:
    squad = async_squad
    await asyncio.to_thread(embedded.ensure, own_home)
    squad._servers.settings = Settings.load({}, home=own_home)
    squad._servers.started.add("nats")
    wiring = squad._wiring
    closing = asyncio.create_task(squad.aclose())
    await asyncio.sleep(0)
    while not closing.done():
        closing.cancel()
        await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        await closing
    assert wiring.connection.client.is_closed
    assert embedded.find(own_home) is None


async def test_a_start_that_is_given_up_leaves_no_server(own_home: Path) -> None:
    for steps in range(0, 40, 3):
        opening = asyncio.create_task(_up(own_home))
        for _ in range(steps):
            await asyncio.sleep(0.002)
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await opening
        assert _servers(own_home) == [], steps


async def _up(home: Path) -> None:
    async with Squad.up(home=home):
        pass


def _servers(home: Path) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(home) in word for word in process.info["cmdline"] or [])
        and process.pid != os.getpid()
        and daemons.is_alive(process)
    ]


async def test_a_ray_that_is_not_there_is_told_as_what_it_is_and_leaves_no_server(own_home: Path) -> None:
    with pytest.raises(ClusterUnavailableError, match=r"127\.0\.0\.1:1 can't be joined.*RAY_ADDRESS"):
        await Squad.up(home=own_home, ray_address="127.0.0.1:1")
    assert _servers(own_home) == []


def test_a_ray_start_whose_starter_died_at_once_is_found(own_home: Path) -> None:
    # It has no daemons yet, and nobody has written down that it began.
    base = daemons.private_dir(own_home / "ray")
    idle = ["-c", "import time; time.sleep(600)", f"--temp-dir={local._owned_temp_dir(base)}"]
    begun = subprocess.Popen([sys.executable, *idle], start_new_session=True)

    assert local.stop(own_home)
    assert begun.wait(HANG_S) != 0
