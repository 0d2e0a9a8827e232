"""A run goes on wherever its replica dies: at each entry of its log, before it is stored and after."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest

from squadron.actors.runs.entries import Entry
from squadron.actors.runs.log import entries_of, read
from squadron.bridge.jetstream.wiring import Wiring
from squadron.config import Settings
from squadron.replay.player import play
from squadron.replay.recording import RecordedRun
from squadron.runtime.asking.answering import People
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import SquadronError
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.outcome import Outcome
from tests.contract.conftest import Replica, at_last, peer_of, until
from tests.contract.run_worker import LEASE_S, Death, Diary, Words, main

#: What each thinker is asked, and the tasks and tools of its run.
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "supervisor": ("goal.pursue", {"goal": "count words, quickly or slowly", "gather": {"after": 1}}),
    "writer": ("texts.write", {"text": "write"}),
    "reader": ("texts.read", {"text": "read"}),
}
#: Runs at once: each has two processes, which mostly wait.
AT_ONCE = 6
#: How long a run may take, in seconds, and all of them: three minutes on a busy machine. It is the run that tells
#: what hangs.
WITHIN_S, ALL_WITHIN_S = 600.0, 3_000

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.contract.run_worker", "tests.contract.conftest"])


@dataclass
class Case:
    """One run with one death, or none."""

    settings: Settings
    folder: Path
    thinker: str
    death: Death | None = None
    kinds: list[tuple[str, ...]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    recorded: dict[str, list[tuple[Entry, ...]]] = field(default_factory=dict)
    died: bool = False

    @property
    def diary(self) -> Diary:
        return Diary(str(self.folder / "diary"))

    def _process(self, name: str, death: Death | None) -> Any:
        process = PROCESSES.Process(
            target=main, args=(self.settings, self.thinker, name, str(self.folder / "diary"), death), daemon=True
        )
        process.start()
        return process

    async def run(self) -> Outcome:
        """Have it done; the first process dies as it is told, and another one takes over."""
        self.folder.mkdir()
        identity = AgentIdentity(id="client", type="test")
        wiring = await at_last(lambda: Wiring.open(self.settings, identity, create=True))
        processes = []
        try:
            words = Replica(peer_of(wiring), Words(str(self.folder / "diary")), lease_s=LEASE_S)
            await words.start()
            processes.append(self._process("first", self.death))
            topic, content = ASKED[self.thinker]

            async def served() -> bool:
                return wiring.registry.find(topic) is not None

            await until(served)
            answering = asyncio.create_task(answer_all(wiring))
            asking = asyncio.create_task(wiring.caller.ask(topic, content, AskOptions(within_s=WITHIN_S)))
            if self.death is not None:
                died = asyncio.create_task(asyncio.to_thread(processes[0].join, WITHIN_S))
                # Where ends were stored together, it may be over before.
                await asyncio.wait([died, asking], return_when=asyncio.FIRST_COMPLETED)
                if not asking.done():
                    # 255: the fork server could not say how.
                    assert processes[0].exitcode in (-signal.SIGKILL, 255), (
                        f"it did not die: {self.death}",
                        [message async for message in read(wiring.ports, wiring.ports.subjects.run())],
                    )
                    processes.append(self._process("second", None))
                    self.died = True
            outcome = await asking
            answering.cancel()
            async for _, message in read(wiring.ports, wiring.ports.subjects.run()):
                entries = entries_of(message)
                self.entries += entries
                self.recorded.setdefault(message.correlation_id or "", []).append(entries)
                self.kinds.append(tuple(entry.kind for entry in entries))
            await words.aclose()
            return outcome
        finally:
            for process in processes:
                process.kill()
                await asyncio.to_thread(process.join)
            await wiring.aclose()


#: Whose run is killed at each step whenever tests run; the others take minutes.
ALWAYS = "supervisor"


@pytest.fixture(
    scope="module",
    params=[each if each == ALWAYS else pytest.param(each, marks=pytest.mark.slow) for each in ASKED],
)
def thinker(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cases(settings: Settings, tmp_path: Path) -> Callable[..., Case]:
    def make(thinker: str, name: str, death: Death | None = None) -> Case:
        env = f"{settings.env[:20]}-{name}"
        return Case(dataclasses.replace(settings, env=env), tmp_path / name, thinker, death)

    return make


async def answer_all(wiring: Wiring) -> None:
    """A person who answers at once, and says who they are or that it may be."""
    people = People(wiring.ports, wiring.caller.lite_topics)
    while True:
        for each in await at_last(people.questions):
            with contextlib.suppress(SquadronError):
                content = {} if each.question.kind == "approval" else {"answer": "a person"}
                await people.answer(each.query_id, content, by="tester")
        await asyncio.sleep(0.05)


def check(case: Case, plain: Case, outcome: Outcome, expected: Outcome) -> None:
    """The run came to what it comes to without a death, and nothing was done or paid twice."""
    where = f"{case.death} of {plain.kinds}, came to {case.kinds}: {outcome}"
    assert outcome.ok, (where, outcome.reason)
    lines, before = Counter(case.diary.lines), Counter(plain.diary.lines)
    tasks = [line for line in lines if line.startswith("task")]
    assert all(lines[line] == 1 for line in tasks), (where, lines)
    # The bid for the one that fails may be late; then the other has it at once.
    assert abs(len(tasks) - len([line for line in before if line.startswith("task")])) <= 1, where
    pages = [line for line in lines if line.startswith("page")]
    # The two that ran when it died may be asked for again: by the model, which is told that nobody knows of them.
    assert sum(lines[line] - 1 for line in pages) <= 2, (where, lines)
    # Whoever does not know how far a tool came that nobody may repeat, does not run it again.
    assert lines["book"] <= 1, where
    # At most one call of the model is paid twice, and the books say so.
    models = {line: count for line, count in lines.items() if line.startswith("model")}
    again = sum(models.values()) - sum(count for line, count in before.items() if line.startswith("model"))
    assert 0 <= sum(models.values()) - sum(map(is_answer, case.entries)) <= 1, (where, models)
    # Who asks for pages again, of which nobody knows, may have to summarize once more.
    assert 0 <= again <= (2 if case.thinker == "reader" else 1), (where, models)
    asked = sum(entry.kind == "asking" for entry in case.entries)
    assert asked - sum(models.values()) in (0, 1), (where, models)
    assert outcome.spent.rounds == asked, (where, outcome.spent)
    assert outcome.spent.tokens == charged(case.entries), (where, outcome.spent)
    assert sum(entry.kind == "epoch" for entry in case.entries) <= 2, where
    got, want = outcome.unwrap(), expected.unwrap()
    if case.thinker == "supervisor":
        assert (got["answer"], got["deliverables"]) == (want["answer"], want["deliverables"]), where
    else:
        assert got == want, where


def is_answer(entry: Entry) -> bool:
    """Whether it says what came of a call of the model."""
    return entry.kind in ("thought", "failed") or (entry.kind == "summarized" and entry.model != "")


def charged(entries: Sequence[Entry]) -> int:
    """Tokens by the log alone: those of each answer, and what was set aside for one whose end nobody heard."""
    tokens, open_ = 0, 0
    for entry in entries:
        if entry.kind == "asking":
            open_ = entry.tokens
        elif entry.kind == "epoch":
            tokens, open_ = tokens + open_, 0
        elif is_answer(entry):
            # Whoever refuses sends no bill.
            tokens, open_ = tokens + (0 if entry.kind == "failed" else 15), 0
    return tokens


@pytest.mark.timeout(ALL_WITHIN_S)
@pytest.mark.parametrize("replayed", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_a_run_goes_on_wherever_its_replica_dies(
    cases: Any, thinker: str, replayed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if thinker == "reader":
        # What a window holds is a setting, and replays go by it: see `run_worker`.
        monkeypatch.setenv("SQUADRON_PRICES", '{"mind:test": {"input": 1, "output": 1, "window": 8000}}')
    # Given how the run goes when nobody dies
    kind = "replayed" if replayed else "plain"
    plain = cases(thinker, kind)
    expected = await plain.run()
    assert expected.ok, expected.reason
    # When its replica dies at each point of its log
    room = asyncio.Semaphore(AT_ONCE)

    async def die(death: Death) -> bool:
        async with room:
            case = cases(thinker, f"{kind}-{'after' if death.after else 'before'}-{death.at}", death)
            check(case, plain, await case.run(), expected)
            for run, messages in case.recorded.items() if replayed else ():
                replay = await asyncio.to_thread(play, RecordedRun(run=run, messages=tuple(messages)))
                assert replay.equal, (death, replay.difference)
            return case.died

    deaths = [Death(at, after) for at in range(1, len(plain.kinds) + 1) for after in (False, True)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(die(death)) for death in deaths]
    died = [task.result() for task in tasks]
    assert sum(died) >= len(deaths) - 6


async def test_no_kind_of_entry_is_forgotten(cases: Any) -> None:
    # Of a tool that asks for a retry there is a test of its own, and of a provider that goes on alone: see
    # `test_thoughts_killed`; of an account that refuses, in `test_replay_races`.
    seen = {"withdrawn", "accepted", "refused"}
    for name in ASKED:
        case = cases(name, name)
        assert (await case.run()).ok
        seen |= {entry.kind for entry in case.entries}
    union = get_args(get_args(Entry)[0])
    assert {kind.model_fields["kind"].default for kind in union} == seen
