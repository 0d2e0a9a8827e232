"""What a replica counts, and how what replicas tell adds up: never twice, never less than before."""

from __future__ import annotations

import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squadron.actors.runs.entries import Thought, TryFailed
from squadron.actors.thinking.model import ModelTurn, Usage
from squadron.bridge.metrics.counting import Counting, Countings
from squadron.bridge.metrics.families import COUNTED, COUNTERS, MODEL_SECONDS, MOST_TOPICS, OTHER, SECONDS
from squadron.bridge.metrics.figures import Figures
from squadron.bridge.metrics.sums import (
    KEPT_S,
    MANY_KEPT,
    MANY_KEPT_S,
    MOST_CELLS,
    Sums,
    read_cells,
)
from squadron.runtime.errors import InvalidMessageError
from squadron.runtime.telemetry.happenings import (
    Buried,
    CallAdmitted,
    MessageStored,
    PersonAnswered,
    PersonAsked,
    RunGrew,
    TurnBegun,
    TurnEnded,
)
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.outcome import DeadLettered, Outcome, Result
from squadron.runtime.wire.spent import Spent

MESSAGE = AgentMessage.new("task", AgentIdentity(id="me", type="test"), {})


def _begun(topic: str = "desk.echo", attempt: int = 1, waited_s: float = 0.0, kind: Any = "task") -> TurnBegun:
    return TurnBegun(
        kind=kind, agent="desk", topic=topic, served=topic, message=MESSAGE, attempt=attempt, waited_s=waited_s
    )


def _ended(outcome: Outcome | None, topic: str = "desk.echo", **more: Any) -> TurnEnded:
    given: dict[str, Any] = {"kind": "task", "end": "outcome", "attempt": 1, "seconds": 0.0} | more
    return TurnEnded(agent="desk", topic=topic, served=topic, message=MESSAGE, outcome=outcome, **given)


def _cells(counting: Counting) -> dict[tuple[str, ...], tuple[float, ...]]:
    # As it travels.
    return dict(read_cells(json.loads(json.dumps(counting.told()))["cells"]))


def test_a_task_is_counted_by_topic_and_outcome_with_its_wait_and_its_time() -> None:
    counting = Counting()
    for happening in (
        _begun(waited_s=0.03),
        _ended(None, end="again", seconds=0.2, after_s=1),
        _begun(attempt=2, waited_s=1.2),
        _ended(Result(data=1), attempt=2, seconds=0.004),
        _ended(DeadLettered(reason="no"), "desk.never", seconds=700.0),
        _ended(Result(data=1), attempt=0),
        MessageStored(id="what nobody counts"),
    ):
        counting.hear(happening)

    cells = _cells(counting)
    assert cells["tasks", "desk.echo", "result"] == (2,)
    assert cells["tasks", "desk.never", "dead_lettered"] == (1,)
    assert cells["retries", "desk.echo"] == (1,)
    # Only the first attempt waited in the mailbox.
    assert cells["wait", "desk.echo"] == (0.03, 0, 0, 0, 1)
    # What never ran has no time.
    assert cells["turn", "desk.echo"] == (pytest.approx(0.204), 1, 0, 0, 0, 0, 1)
    assert cells["turn", "desk.never"] == (700, *[0] * len(SECONDS), 1)


def test_durable_events_are_counted_apart_from_tasks() -> None:
    counting = Counting()
    counting.hear(_begun("news.*", kind="durable", waited_s=3))
    counting.hear(_ended(None, "news.*", kind="durable", end="handled"))
    counting.hear(_ended(DeadLettered(reason="no"), "news.*", kind="durable"))

    assert _cells(counting) == {
        ("events", "news.*", "handled"): (1,),
        ("events", "news.*", "dead_lettered"): (1,),
    }


def test_the_types_of_tokens_add_up_to_all_of_them() -> None:
    counting = Counting()
    usage = Usage(input=100, output=50, cache_read=60, cache_write=10, reasoning=20)
    spent = Spent(150, 2_500, 1)
    thought = Thought(
        at=1, round=1, turn=ModelTurn(usage=usage, model="acme:one"), spent=spent.to_wire(), seconds=0.05
    )
    failed = TryFailed(
        at=1, round=2, number=1, model="acme:one", error="E", reason="no", spent=Spent(7, 500).to_wire()
    )
    counting.hear(RunGrew(run="r", entries=(thought,)))
    counting.hear(RunGrew(run="r", entries=(failed, failed, SimpleNamespace(kind="nudge"))))

    cells = _cells(counting)
    tokens = {labels[1]: count for (kind, *labels), (count, *_) in cells.items() if kind == "tokens"}
    assert tokens == {
        "input": 30,
        "cache_read": 60,
        "cache_write": 10,
        "output": 30,
        "reasoning": 20,
        "unknown": 14,
    }
    assert sum(tokens.values()) == usage.total + 14
    assert cells["usd_micros", "acme:one"] == (3_500,)
    assert cells["calls", "acme:one", "ok"] == (1,)
    assert cells["calls", "acme:one", "failed"] == (2,)
    assert cells["thought", "acme:one"] == (0.05, 0, 0, 0, 1)
    assert MODEL_SECONDS[0] == 0.01
    assert MODEL_SECONDS[-1] == 81.92


async def test_dead_letters_waits_for_providers_people_and_connections_are_counted() -> None:
    counting = Counting()
    counting.hear(Buried(agent="desk", topic="a.b", id="1", reason="no"))
    counting.hear(CallAdmitted(model="acme:one", account="acme", waited_s=1.5))
    counting.hear(CallAdmitted(model="acme:two", account="acme", waited_s=0.25))
    counting.hear(PersonAsked(query="q", message="m", about=""))
    counting.hear(PersonAnswered(query="q", by="ann", action="accept"))
    await counting.reconnected()

    assert _cells(counting) == {
        ("buried",): (1,),
        ("admitted", "acme"): (2,),
        ("admission", "acme"): (1.75,),
        ("asked",): (1,),
        ("answered",): (1,),
        ("reconnects",): (1,),
    }


def test_a_process_of_several_agents_counts_for_each() -> None:
    countings = Countings()
    countings.hear(_ended(Result(data=1)))
    countings.hear(Buried(agent="other", topic="a.b", id="1", reason="no"))
    countings.hear(MessageStored(id="of nobody"))
    told = {agent: dict(read_cells(each["cells"])) for agent, each in countings.told().items()}
    assert told["other"] == {("buried",): (1,)}
    assert told["desk"]["tasks", "desk.echo", "result"] == (1,)
    assert len(told) == 2


def test_of_ten_thousand_topics_most_are_one_and_the_heartbeat_stays_small() -> None:
    counting = Counting()
    for number in range(10_000):
        topic = f"{'t' * 40}.{number}"
        counting.hear(_begun(topic, waited_s=0.001 * number))
        counting.hear(_ended(Result(data=1), topic, seconds=0.01 * number))
        counting.hear(_ended(None, topic, end="again"))

    cells = _cells(counting)
    topics = {cell[1] for cell in cells}
    assert len(topics) == MOST_TOPICS + 1
    assert cells["tasks", OTHER, "result"] == (10_000 - MOST_TOPICS,)
    assert sum(numbers[0] for cell, numbers in cells.items() if cell[0] == "tasks") == 10_000
    assert len(counting._waits) == len(counting._turns) == MOST_TOPICS
    # A NATS message may have a megabyte.
    assert len(json.dumps(counting.told())) < 32_000


def test_what_an_agent_counted_under_many_versions_of_its_code_stays_bounded() -> None:
    sums, told = Sums(), defaultdict[str, int](int)
    for version in range(400):
        cells = {("tasks", f"v{version}.{number}", "result"): (1,) for number in range(20)}
        sums.take(f"replica-{version}", cells, now=version)
        told["replica"] += 20
    total = sums.total()
    assert len(total) == MOST_CELLS + 1
    assert sum(numbers[0] for numbers in total.values()) == told["replica"]
    # As it does when it is taken up by the next bridge.
    again = Sums.decode(sums.encode(), now=0)
    again.take("one-more", {("tasks", "new.topic", "result"): (5,)}, now=1)
    assert len(again.total()) == MOST_CELLS + 1


# --- sums ----------------------------------------------------------------------------------------------

#: What may happen: a replica counts, it is heard of (or an old heartbeat of it is, once more), it is killed, or
#: stopped with a last word, time passes, and the bridge is killed.
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("count"), st.integers(0, 3), st.sampled_from(["a.b", "c.d"]), st.floats(0, 700)),
        st.tuples(st.just("heard"), st.integers(0, 3)),
        st.tuples(st.just("late"), st.integers(0, 3), st.integers(0, 50)),
        st.tuples(st.just("killed"), st.integers(0, 3)),
        st.tuples(st.just("stopped"), st.integers(0, 3)),
        st.tuples(st.just("pass"), st.floats(0, 2 * KEPT_S)),
        st.tuples(st.just("bridge killed")),
    ),
    max_size=60,
)


@given(EVENTS)
def test_whatever_is_lost_late_or_doubled_nothing_counts_twice_and_no_sum_falls(events: list[Any]) -> None:
    sums, now = Sums(), 0.0
    counting = {number: Counting() for number in range(4)}
    generation = dict.fromkeys(range(4), 0)
    sent: dict[str, list[dict[str, Any]]] = defaultdict(list)
    heard: dict[str, int] = {}
    heard_at: dict[str, float] = {}
    before: dict[Any, tuple[float, ...]] = {}

    def tell(number: int, which: int = -1) -> None:
        name = f"{number}-{generation[number]}"
        if which < 0:
            sent[name].append(json.loads(json.dumps(counting[number].told())))
        if sent[name] and now - heard_at.get(name, now) <= KEPT_S:
            index = which % len(sent[name]) if which >= 0 else len(sent[name]) - 1
            sums.take(name, read_cells(sent[name][index]["cells"]), now)
            heard[name] = max(heard.get(name, 0), index)
            heard_at[name] = now

    for event in events:
        match event:
            case "count", number, topic, seconds:
                counting[number].hear(_ended(Result(data=1), topic, seconds=seconds))
            case "heard", number:
                tell(number)
            case "late", number, which:
                tell(number, which)
            case ("killed" | "stopped") as how, number:
                if how == "stopped":
                    tell(number)
                counting[number], generation[number] = Counting(), generation[number] + 1
            case "pass", seconds:
                now += seconds
            case ("bridge killed",):
                sums, now = Sums.decode(sums.encode(), now=0.0), 0.0
                heard_at = dict.fromkeys(heard_at, 0.0)
        total = sums.total()
        assert all(total[cell][0] >= numbers[0] - 1e-3 for cell, numbers in before.items())
        before = dict(total)

    expected: dict[Any, float] = defaultdict(float)
    for name, index in heard.items():
        for cell, numbers in read_cells(sent[name][index]["cells"]).items():
            expected[cell] += numbers[0]
    assert {cell: numbers[0] for cell, numbers in sums.total().items()} == pytest.approx(expected, abs=1e-3)


def test_a_replica_that_is_idle_for_long_does_not_count_anew_when_the_bridge_is_replaced() -> None:
    sums, cells = Sums(), {("buried",): (3,)}
    assert sums.take("idle", cells, now=0)
    assert not sums.take("idle", cells, now=10)
    # The record was last written at 0; the next bridge starts a day later, by a clock of its own.
    sums = Sums.decode(sums.encode(), now=86_400)
    sums.take("other", {("buried",): (1,)}, now=86_401)
    sums.take("idle", cells, now=86_405)
    assert sums.total() == {("buried",): (4,)}


def test_what_replicas_did_that_are_long_gone_counts_and_so_does_what_many_do() -> None:
    sums = Sums()
    for number in range(MANY_KEPT + 1):
        sums.take(f"early-{number}", {("buried",): (2,)}, now=0)
    # Too many to be kept apart for long: all but the last are added up.
    sums.take("late", {("buried",): (1,)}, now=MANY_KEPT_S + 1)
    assert sums.total() == {("buried",): (2 * (MANY_KEPT + 1) + 1,)}
    sums.take("later", {("buried",): (1,)}, now=3 * KEPT_S)
    assert sums.total() == {("buried",): (2 * (MANY_KEPT + 1) + 2,)}
    assert len(sums.encode()) < 200


def test_nobody_is_taken_for_gone_because_the_bridge_itself_heard_nothing() -> None:
    sums = Sums()
    sums.take("one", {("buried",): (3,)}, now=0)
    sums.wait_on(2 * KEPT_S)
    sums.take("two", {("buried",): (1,)}, now=2 * KEPT_S + 1)
    sums.take("one", {("buried",): (3,)}, now=2 * KEPT_S + 2)
    assert sums.total() == {("buried",): (4,)}


def test_more_replicas_than_are_kept_apart_all_count_once() -> None:
    sums = Sums()
    for beat in range(3):
        for number in range(MANY_KEPT + 100):
            sums.take(str(number), {("buried",): (1,)}, now=beat * MANY_KEPT_S / 2)
    assert sums.total() == {("buried",): (MANY_KEPT + 100,)}


@pytest.mark.parametrize(
    "raw",
    [
        None,
        {},
        [1],
        [[]],
        [["tasks", "a", "b"]],
        [["tasks", "a", [1]]],
        [["tasks", "a", 1, [1]]],
        [["tasks", "a", "b" * 1000, [1]]],
        [["tasks", "a", "b", []]],
        [["tasks", "a", "b", [1, 2]]],
        [["turn", "a", [0] * 100]],
        [["buried", [1]]] * (MOST_CELLS + 1),
    ],
)
def test_cells_that_are_none_are_refused(raw: Any) -> None:
    with pytest.raises(InvalidMessageError):
        read_cells(raw)


@pytest.mark.parametrize("number", [-1, True, float("nan"), float("inf"), 1e300, 10**400, "1", None])
def test_a_cell_whose_number_is_none_is_left_out_and_the_others_count(number: Any) -> None:
    assert read_cells([["tasks", "a", "b", [number]], ["buried", [2]]]) == {("buried",): (2,)}


def test_a_kind_of_a_newer_replica_is_left_out() -> None:
    assert read_cells([["of tomorrow", "x", [1]], ["buried", [2]]]) == {("buried",): (2,)}


@pytest.mark.parametrize("data", [b"", b"{}", b"x" * 100])
def test_a_record_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidMessageError):
        Sums.decode(data, now=0)


# --- as it is shown ------------------------------------------------------------------------------------


def test_each_kind_that_is_counted_is_shown_and_the_labels_fit() -> None:
    assert {family.of for family in COUNTERS} == set(COUNTED)
    for family in COUNTERS:
        labels = [f"l{number}" for number in range(COUNTED[family.of][0])]
        assert len(family.values("agent", labels)) == len(family.labels), family.name
        # 14 buckets are 17 series each.
        assert family.kind != "histogram" or sum(name != "gen_ai_operation_name" for name in family.labels) <= 2


@pytest.mark.parametrize(
    ("model", "provider"), [("google:g", "gcp.gemini"), ("azure:g", "azure.ai.openai"), ("mine:g", "mine")]
)
def test_providers_are_called_as_the_conventions_do(model: str, provider: str) -> None:
    [family] = [each for each in COUNTERS if each.name == "gen_ai_client_operation_duration_seconds"]
    assert family.values("clerk", (model,)) == ("chat", provider, "g")


def test_the_articles_names_are_sums_over_the_topics() -> None:
    cells = {
        ("tasks", "a.b", "result"): (3,),
        ("tasks", "c.d", "result"): (4,),
        ("tasks", "c.d", "failed"): (1,),
        ("turn", "a.b"): (0.5, 0, 1),
        ("turn", "c.d"): (1.5, 2),
        ("usd_micros", "acme:one"): (1_500_000,),
        ("thought", "acme:one"): (2.0, 1),
    }
    figures = Figures({"desk": cells})
    by_name = {family.name: figures.of(family) for family in COUNTERS}
    assert by_name["agent_tasks_total"] == {("desk", "result"): (7,), ("desk", "failed"): (1,)}
    assert by_name["agent_task_duration_seconds"] == {("desk",): (2.0, 2, 1)}
    assert by_name["squadron_spent_usd_total"] == {("desk", "acme:one"): (1.5,)}
    assert by_name["gen_ai_client_operation_duration_seconds"] == {("chat", "acme", "one"): (2.0, 1)}
