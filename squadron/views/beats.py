"""What replicas tell of themselves at each heartbeat, and what it comes to per agent: rates, failures, waits."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from squadron.runtime.wire.amounts import is_amount

#: Rates are taken over so many seconds, as `top` programs do.
WINDOWS_S = (5.0, 30.0, 300.0)
#: A replica that was silent for so many heartbeats is gone, as the registry has it.
MISSED_BEATS = 3
#: The longest interval that is believed, in seconds.
LONGEST_BEAT_S = 1200
#: Beats of one replica that are kept: one each second fills the longest window.
BEATS_KEPT = 301
#: How slow a topic is, is told over so many seconds.
RECENT_S = 30.0


@dataclass(frozen=True, slots=True)
class TopicFigures:
    """One topic of an agent over the last half minute; times are means in seconds, None if nothing came."""

    topic: str
    rate: float = 0.0
    wait_s: float | None = None
    run_s: float | None = None
    failed: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaFigures:
    """One replica as it told of itself last; `rate` is None until it told twice."""

    id: str
    slots: int
    in_flight: int
    done: int
    failed: int
    rate: float | None
    silent_s: float


@dataclass(frozen=True, slots=True)
class AgentFigures:
    """One agent now.

    Attributes:
        running, target: replicas, as Serve has them.
        waiting: tasks in its mailbox that nobody has taken; None if the bridge does not know.
        rates: tasks that ended per second over `WINDOWS_S`; None until there are two heartbeats.
        failed: tasks that ended otherwise than in a result since its replicas began; `failing` those of the last
            five minutes.
        age_s: how long the tasks that began lately had waited, in seconds, on the average; if replicas do not
            tell, how long the last one in the mailbox will, at the present rate (`age_guessed`). None if unknown.
        outcomes: how often tasks ended in each kind of outcome, since its replicas began.
        topics: the slowest first.
    """

    agent: str
    status: str = ""
    message: str = ""
    running: int = 0
    target: int = 0
    slots: int = 0
    in_flight: int = 0
    waiting: int | None = None
    rates: tuple[float | None, ...] = (None, None, None)
    done: int = 0
    failed: int = 0
    failing: int = 0
    age_s: float | None = None
    age_guessed: bool = False
    outcomes: Mapping[str, int] = field(default_factory=dict)
    serves: tuple[str, ...] = ()
    topics: tuple[TopicFigures, ...] = ()
    replicas: tuple[ReplicaFigures, ...] = ()


@dataclass(frozen=True, slots=True)
class _Beat:
    at: float
    slots: int
    in_flight: int
    outcomes: Mapping[str, int]
    #: Of each kind and topic (and outcome) the numbers counted since the replica began.
    cells: Mapping[tuple[str, ...], tuple[float, ...]]

    @property
    def done(self) -> int:
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        return self.done - self.outcomes.get("result", 0)


@dataclass(slots=True)
class _History:
    agent: str
    #: Seconds between two beats, by its own word.
    beat_s: float = 0.0
    beats: deque[_Beat] = field(default_factory=lambda: deque(maxlen=BEATS_KEPT))

    def before(self, seconds: float) -> _Beat | None:
        """The beat that the newest is held against over so many seconds; None if there is but one."""
        newest, found = self.beats[-1], None
        for beat in reversed(self.beats):
            if beat is newest:
                continue
            found = beat
            # A little later counts, too: heartbeats are never quite on time.
            if newest.at - beat.at >= seconds - min(1.0, 0.1 * seconds):
                break
        return found


class Beats:
    """Takes in heartbeats and says what they come to."""

    def __init__(self, *, heartbeat_s: float) -> None:
        self._beat_s = heartbeat_s
        self._replicas: dict[str, _History] = {}

    def hear(self, content: Any, at: float) -> None:
        """Take in the content of one heartbeat that came at this time; what is none is passed over."""
        if not isinstance(content, Mapping):
            return
        agent, replica = content.get("agent"), content.get("replica")
        if not (isinstance(agent, str) and isinstance(replica, str)):
            return
        if content.get("event") == "agent_offline":
            self._replicas.pop(replica, None)
            return
        outcomes = content.get("outcomes")
        counts = outcomes if isinstance(outcomes, Mapping) else {}
        beat = _Beat(
            at,
            _count(content.get("slots")),
            _count(content.get("inFlight")),
            {kind: int(count) for kind, count in counts.items() if isinstance(kind, str) and is_amount(count)},
            _cells(content.get("metrics")),
        )
        history = self._replicas.setdefault(replica, _History(agent))
        history.beat_s = min(_count(content.get("beatS")), LONGEST_BEAT_S)
        if history.beats and beat.done < history.beats[-1].done:
            # It began anew under its old name.
            history.beats.clear()
        history.beats.append(beat)

    def beats_of(self, agent: str) -> list[int]:
        """How often each living replica of an agent was heard."""
        return [len(each.beats) for each in self._replicas.values() if each.agent == agent]

    def figures(self, agents: Iterable[Mapping[str, Any]], now: float) -> list[AgentFigures]:
        """What is known of each agent that the bridge's `status` tells of."""
        for name, it in list(self._replicas.items()):
            if now - it.beats[-1].at > MISSED_BEATS * max(self._beat_s, it.beat_s):
                del self._replicas[name]
        return [self._figures(each, now) for each in agents]

    def _figures(self, status: Mapping[str, Any], now: float) -> AgentFigures:
        mine = {name: it for name, it in sorted(self._replicas.items()) if it.agent == status["agent"]}
        histories = list(mine.values())
        rates = tuple(_sum([_rate(each, seconds) for each in histories]) for seconds in WINDOWS_S)
        topics = _topics(histories)
        age, guessed = _age(topics), False
        waiting = status.get("waiting")
        if age is None and waiting and rates[1]:
            age, guessed = waiting / rates[1], True
        return AgentFigures(
            agent=status["agent"],
            status=status.get("status", ""),
            message=status.get("message", ""),
            running=status.get("running", 0),
            target=status.get("target", 0),
            slots=sum(each.beats[-1].slots for each in histories),
            in_flight=sum(each.beats[-1].in_flight for each in histories),
            waiting=waiting,
            rates=rates,
            done=sum(each.beats[-1].done for each in histories),
            failed=sum(each.beats[-1].failed for each in histories),
            failing=sum(_failing(each) for each in histories),
            age_s=age,
            age_guessed=guessed,
            # A plain one: `dataclasses.asdict` would count the pairs of a counter.
            outcomes=dict(sum((Counter(each.beats[-1].outcomes) for each in histories), Counter())),
            serves=tuple(status.get("topics", ())),
            topics=tuple(topics),
            replicas=tuple(_replica(name, it, now) for name, it in mine.items()),
        )


def _replica(name: str, history: _History, now: float) -> ReplicaFigures:
    beat = history.beats[-1]
    rate = _rate(history, RECENT_S)
    counts = (beat.slots, beat.in_flight, beat.done, beat.failed)
    return ReplicaFigures(name, *counts, rate=rate, silent_s=max(0.0, now - beat.at))


def _rate(history: _History, seconds: float) -> float | None:
    before = history.before(seconds)
    if before is None:
        return None
    newest = history.beats[-1]
    return (newest.done - before.done) / max(0.001, newest.at - before.at)


def _failing(history: _History) -> int:
    before = history.before(WINDOWS_S[-1])
    return history.beats[-1].failed - before.failed if before is not None else 0


def _sum(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _age(topics: Sequence[TopicFigures]) -> float | None:
    waited = [(each.wait_s, each.rate) for each in topics if each.wait_s is not None]
    weight = sum(rate for _, rate in waited)
    return sum(wait * rate for wait, rate in waited) / weight if weight else None


def _topics(histories: Sequence[_History]) -> list[TopicFigures]:
    """What the replicas counted by topic in the last half minute, the slowest first."""
    sums: dict[str, dict[str, float]] = {}
    for history in histories:
        before = history.before(RECENT_S)
        newest = history.beats[-1]
        if before is None:
            continue
        seconds = max(0.001, newest.at - before.at)
        for cell, numbers in newest.cells.items():
            if len(cell) < 2:
                continue
            kind, topic, *rest = cell
            total, count = _difference(numbers, before.cells.get(cell, ()))
            into = sums.setdefault(topic, {})
            if kind in ("wait", "turn"):
                # The first number is the sum, those after it are counts by duration.
                into[f"{kind}_s"] = into.get(f"{kind}_s", 0.0) + total
                into[kind] = into.get(kind, 0.0) + count
            elif kind == "tasks":
                into["rate"] = into.get("rate", 0.0) + total / seconds
                if rest != ["result"]:
                    into["failed"] = into.get("failed", 0.0) + total
    figures = [
        TopicFigures(
            topic,
            rate=each.get("rate", 0.0),
            wait_s=each["wait_s"] / each["wait"] if each.get("wait") else None,
            run_s=each["turn_s"] / each["turn"] if each.get("turn") else None,
            failed=round(each.get("failed", 0.0)),
        )
        for topic, each in sums.items()
    ]
    return sorted(figures, key=lambda each: -(each.run_s or 0.0))


def _difference(now: Sequence[float], before: Sequence[float]) -> tuple[float, float]:
    """How much the first number grew, and how much the others did together."""
    return now[0] - (before[0] if before else 0.0), sum(now[1:]) - sum(before[1:])


def _cells(metrics: Any) -> dict[tuple[str, ...], tuple[float, ...]]:
    """What a replica counted by topic, if it tells: `[kind, label, …, [number, …]]` each."""
    cells = metrics.get("cells") if isinstance(metrics, Mapping) else None
    found = dict[tuple[str, ...], tuple[float, ...]]()
    for cell in cells if isinstance(cells, list) else ():
        match cell:
            case [*labels, [_, *_] as numbers] if all(isinstance(each, str) for each in labels):
                if all(map(is_amount, numbers)) and labels[:1] in (["wait"], ["turn"], ["tasks"]):
                    found[tuple(labels)] = tuple(numbers)
    return found


def _count(value: Any) -> int:
    return int(value) if is_amount(value) else 0
