"""What a notebook shows of topics, outcomes, tasks, runs and dead letters."""

from __future__ import annotations

from html.parser import HTMLParser

from squadron import Agent, topic
from squadron.actors.agent import AgentSpec
from squadron.actors.runs.shelf import RunInfo, RunList
from squadron.runtime.html_table import MOST_ROWS, MOST_TEXT, table
from squadron.runtime.store.dead_letters import DeadLetter
from squadron.runtime.store.letter_list import LetterList
from squadron.runtime.wire.outcome import Failed, Result
from squadron.runtime.wire.topics import ScoredTopic, TopicList
from squadron.testing import MemorySquad

EVIL = "<script>alert('x')</script>&\"'"


class Cells(HTMLParser):
    """The texts of a table, row by row, and which elements it is made of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.elements = set[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


class Reader(Agent):
    """Reads."""

    @topic("read.text")
    async def read(self, text: str, pages: int = 2) -> int:
        """Count the words."""
        return len(text.split()) * pages

    @topic("read.refused")
    async def refuse(self, text: str) -> int:
        """Count nothing."""
        raise ValueError(text)


def served() -> TopicList:
    return TopicList(
        ScoredTopic(topic=each.topic, agent="reader", score=0.0) for each in AgentSpec.of(Reader).topics
    )


def test_topics_are_a_list_and_a_table() -> None:
    found = served()

    assert [each.topic.name for each in found] == ["read.text", "read.refused"]
    assert Cells(found._repr_html_()).rows == [
        ["topic", "agent", "takes", "what it does"],
        ["read.text", "reader", "text: string, pages: integer = 2", "Count the words."],
        ["read.refused", "reader", "text: string", "Count nothing."],
    ]
    assert TopicList()._repr_html_() == "<p>Nothing is served that fits.</p>"


def test_what_anybody_wrote_is_text() -> None:
    letter = DeadLetter(
        id=EVIL,
        agent="reader",
        subject="agents.dev.task.read.text",
        reason=EVIL,
        attempts=3,
        last_error=EVIL,
        traceback_digest="",
        buried_at=0.0,
        message=EVIL.encode(),
        carried="",
        sealed=None,
        complete=True,
        key="k.t",
        seq=1,
    )
    shown = [
        LetterList([letter])._repr_html_(),
        RunList([RunInfo(run=EVIL, state="running", title=EVIL)])._repr_html_(),
        Result(topic=EVIL, data={EVIL: EVIL})._repr_html_(),
        Failed(topic=EVIL, reason=EVIL, details={EVIL: EVIL})._repr_html_(),
    ]

    for html in shown:
        cells = Cells(html)
        assert not cells.elements - {"table", "thead", "tbody", "tr", "th", "td", "p"}
        assert any("alert" in text for row in cells.rows for text in row)
    assert Cells(shown[0]).rows[1] == [EVIL, "reader", "read.text", "3", EVIL]


def test_an_outcome_says_how_it_ended_and_what_it_brought() -> None:
    done = Result(topic="read.text", source="reader-1", latency_ms=1234.5, data={"words": 7}, tokens=1500)
    failed = Failed(topic="read.text", source="reader-1", reason="no such page")

    assert dict(Cells(done._repr_html_()).rows[1:]) == {
        "how it ended": "result",
        "data": '{\n "words": 7\n}',
        "topic": "read.text",
        "replica": "reader-1",
        "attempt": "1",
        "in the handler": "1,234.5 ms",
        "tokens": "1,500",
    }
    assert ["reason", "no such page"] in Cells(failed._repr_html_()).rows


def test_long_tables_and_texts_are_cut_and_say_so() -> None:
    many = RunList(RunInfo(run=f"run-{number}", state="result") for number in range(MOST_ROWS + 1_500))

    assert len(Cells(many._repr_html_()).rows) == 1 + MOST_ROWS
    assert "1,500 more are not shown" in many._repr_html_()
    assert Cells(table((), [("x" * 10_000,)])).rows[1] == ["x" * MOST_TEXT + "…"]
    assert len(many[:3]) == 3


async def test_a_task_says_where_it_is() -> None:
    async with MemorySquad() as squad:
        await squad.deploy(Reader)
        handle = await squad.submit("read.text", {"text": "two words"})
        before = repr(handle)
        await handle.outcome()

        assert before == f"<task {handle.task_id} of read.text: under way>"
        assert repr(handle) == f"<task {handle.task_id} of read.text: result>"


async def test_a_search_and_the_dead_letters_of_a_squad_are_tables() -> None:
    async with MemorySquad() as squad:
        await squad.deploy(Reader)
        assert Cells(squad.discover("count words")._repr_html_()).rows[1][0] == "read.text"
        assert len(Cells(squad.topics()._repr_html_()).rows) == 3
        assert (await squad.dead_letters.list())._repr_html_() == "<p>Nothing was given up.</p>"
