"""Recorded tasks that are put to another environment."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from squadron import Agent, topic
from squadron.bridge.audit.history import moment
from squadron.bridge.audit.records import RecordMaker
from squadron.bridge.audit.redaction import Redaction
from squadron.bridge.jetstream.intake import Caught
from squadron.replay.load import put_load, tasks_in, tasks_of
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.errors import ConfigError, InvalidInputError, RecordingError
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.outcome import Outcome
from squadron.testing import MemorySquad, now_s

if TYPE_CHECKING:
    from squadron.bridge.audit.history import AuditTrail

ME = AgentIdentity(id="client", type="test")


class Counter(Agent):
    """Counts."""

    @topic("words.count")
    async def count(self, text: str) -> int:
        """Count words."""
        return len(text.split())


def record(at: float, subject: str, message: AgentMessage) -> str:
    return json.dumps({"at": at, "subject": subject, "message": message.model_dump(mode="json", by_alias=True)})


TASK = {
    "subject": "agents.prod.task.words.count.p5",
    "message": json.loads(AgentMessage.new("task", ME, {"text": "a"}).encode()),
}


def traffic(path: Path, *, gap_s: float = 10.0) -> Path:
    """Three tasks and a fourth that one of them asked, two of which had ended."""
    lines = list[str]()
    for number in range(4):
        at, parent = 1000.0 + gap_s * number, "t0" if number == 3 else None
        limits = {"deadline": int(1000 * (at + 30))}
        raw = AgentMessage.new("task", ME, {"text": "a b"}, id=f"t{number}", parent=parent, conversation_id="talk")
        body = raw.model_dump(mode="json", by_alias=True, exclude_none=True)
        body["payload"]["constraints"] = limits
        body["routing"] = {"priority": 7}
        lines.append(record(at, "agents.prod.task.words.count.p7", AgentMessage.model_validate(body)))
    for number, took_s in ((0, 0.5), (1, 2.0)):
        said = {"success": True, "outcome": "result", "data": 2}
        result = AgentMessage.new("result", ME, said, parent=f"t{number}")
        lines.append(record(1000.0 + gap_s * number + took_s, "agents.prod.lite.client.x", result))
    # A trail tells of gaps, too.
    path.write_text("\n".join([*lines, json.dumps({"kind": "gap", "n": 7})]) + "\n")
    return path


async def test_tasks_are_sent_again_with_their_gaps_and_all_that_was_said_of_them(tmp_path: Path) -> None:
    tasks = tasks_in(traffic(tmp_path / "traffic.jsonl"))
    sent = list[tuple[float, AskOptions]]()
    async with MemorySquad(env="stage") as squad:
        await squad.deploy(Counter)
        began = now_s()

        async def send(name: str, content: Any, options: AskOptions) -> Outcome:
            sent.append((now_s() - began, options))
            how: Any = {"within_s": options.within_s, "priority": options.priority}
            return await squad.ask(name, content, **how)

        report = await put_load(tasks, send, env="stage", speed=10)
    # The one that an agent asked comes by itself.
    assert [round(at) for at, _ in sent] == [0, 1, 2]
    assert {options.priority for _, options in sent} == {7}
    assert all(29 < options.within_s <= 30 for _, options in sent)
    (conversation,) = {options.conversation_id for _, options in sent}
    assert conversation == "talk"
    assert not any(options.task_id for _, options in sent)
    then, now = report.recorded["words.count"], report.now["words.count"]
    assert then.outcomes == {"result": 2, "unknown": 1}
    assert (then.p50, then.p95, then.p99) == (0.5, 2.0, 2.0)
    assert now.outcomes == {"result": 3}
    assert now == report.now[""]


async def test_the_recorded_environment_itself_is_spared(tmp_path: Path) -> None:
    tasks = tasks_in(traffic(tmp_path / "traffic.jsonl", gap_s=0.0))
    count = 0

    async def send(name: str, content: Any, options: AskOptions) -> Outcome:
        nonlocal count
        count += 1
        return Outcome()

    with pytest.raises(ConfigError, match="recorded in 'prod' itself"):
        await put_load(tasks, send, env="prod")
    assert count == 0
    await put_load(tasks, send, env="prod", same_env=True)
    assert count == 3
    with pytest.raises(ConfigError, match="speed"):
        await put_load(tasks, send, env="stage", speed=0)


async def test_a_window_of_a_trail_is_read_until_its_tasks_have_ended(tmp_path: Path) -> None:
    records = [json.loads(line) for line in traffic(tmp_path / "traffic.jsonl").read_text().splitlines()][:-1]
    records = [each | {"kind": each["message"]["type"], "n": n} for n, each in enumerate(records)]
    tasks, (first, second) = records[:4], records[4:]
    third = json.loads(json.dumps(second))
    third["message"]["context"]["parentMessageId"] = "t2"
    # What is redriven after its end is no other task; and an end may stand before its task.
    order = [second, *tasks, first, tasks[0], third, *[first] * 3]
    # The window ends after the tasks and the first end.
    order = [each | {"at": 1000.0 if n < 6 else 2000.0} for n, each in enumerate(order)]
    looked = list[int]()

    class Trail:
        async def query(self, *, since: float) -> AsyncGenerator[dict[str, Any], None]:
            for n, each in enumerate(order):
                looked.append(n)
                yield each

    found = await tasks_of(cast("AuditTrail", Trail()), since=0.0, until=1500.0)
    assert [task.outcome for task in found] == ["result"] * 3
    # The last that is looked at is the end of the last task.
    assert looked[-1] == 7


def test_the_beginning_of_a_window_is_a_time_of_which_there_can_be_records() -> None:
    assert moment("2h", now=lambda: 10_000.0) == 2_800.0
    assert moment("1970-01-01T01:00+01:00") == 0.0
    assert moment("2026-11-28") == 1_795_824_000.0
    for long_ago in ("999999999d", f"{'9' * 400}d", "0001-01-01", "0001-01-01T00:00+14:00"):
        assert moment(long_ago) == 0.0
    for text in ("9999-12-31T23:59-14:00", "soon", "1e5d", "-2h", ""):
        with pytest.raises(InvalidInputError, match="is no time"):
            moment(text)


async def test_what_can_not_be_sent_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    file = traffic(tmp_path / "traffic.jsonl", gap_s=0.0)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    # One was too large to travel, and of another the claim is of no shape.
    for number, claim in ((0, {"name": "n", "bytes": 9, "sha256": "0" * 64}), (1, {"name": ""})):
        lines[number]["message"]["payload"] = {"claim": claim}
    file.write_text("\n".join(map(json.dumps, lines)))
    told = list[tuple[int, int]]()

    async def send(name: str, content: Any, options: AskOptions) -> Outcome:
        return Outcome()

    report = await put_load(
        tasks_in(file), send, env="stage", on_progress=lambda sent, ended: told.append((sent, ended))
    )
    assert report.now["words.count"].outcomes == {"unrecorded": 1, "InvalidMessageError": 1, Outcome().kind: 1}
    assert told[-1] == (3, 3)
    assert told == sorted(told)


async def test_tasks_that_a_trail_has_not_as_they_were_are_told_and_the_others_go_on(tmp_path: Path) -> None:
    file = traffic(tmp_path / "traffic.jsonl", gap_s=0.0)
    recorder, odd = RecordMaker(Redaction(""), b"key"), list[dict[str, Any]]()
    whole = AgentMessage.new("task", ME, {"text": "a"})
    # Until longer than anybody may wait.
    late = json.loads(whole.encode())
    late["payload"]["constraints"] = {"deadline": 10**13}
    bodies = (
        b"",
        b"hello",
        b"\xff\x00",
        b"[1]",
        b'{"id": 7}',
        b'{"a": "\\ud800"}',
        b"null",
        json.dumps(late).encode(),
    )
    for number, data in enumerate(bodies):
        caught = Caught("agents.prod.task.words.count.p5", data, {}, stream="tasks", seq=number, at=1001.0)
        made = recorder.record(caught, contents=True, chunks=False)
        assert made is not None
        odd.append(made)
    # As the archivist has what is larger than the server takes.
    odd += [odd[1] | {"message": "[too large]"}, odd[1] | {"subject": "agents.prod.task.Ä"}]
    # A stranger's idea of a task, on a lite topic.
    lite = recorder.record(Caught("agents.prod.lite.a.b", whole.encode(), {}, at=1.0), contents=True, chunks=False)
    file.write_text("".join(f"{json.dumps(each)}\n" for each in (*odd, lite)) + file.read_text())
    sent = list[Any]()

    async def send(name: str, content: Any, options: AskOptions) -> Outcome:
        sent.append(content)
        return Outcome()

    report = await put_load(tasks_in(file), send, env="stage")

    assert sent == [{"text": "a b"}] * 3
    told = report.now["words.count"].outcomes
    assert told == {"unrecorded": 7, "InvalidInputError": 1, Outcome().kind: 3}
    assert report.now["Ä"].outcomes == {"unrecorded": 1}
    # A trail in which none can be sent says what is wrong with the first.
    file.write_text("".join(f"{json.dumps(each)}\n" for each in odd[1:3]))
    with pytest.raises(RecordingError, match="line 1: message"):
        tasks_in(file)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "line 1"),
        ('{"subject": "agents.prod.task.a.b", "message": {"id": ""}}', r"line 1: message\."),
        ('{"kind": "gap"}', "no task"),
        *(
            (json.dumps(TASK | {"at": "AT", **more}).replace('"AT"', at), "line 1: .*is no time")
            for at in ("1e400", "-1e400", "NaN", "-1", "253402300800", f"1{'0' * 400}", '"soon"', "true")
            for more in ({}, {"kind": "task"})
        ),
    ],
)
def test_a_file_that_holds_no_tasks_is_told_so(line: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(f"{line}\n")
    with pytest.raises((RecordingError, ConfigError), match=says):
        tasks_in(tmp_path / "bad.jsonl")
