"""The accountant: holds what the client was told against what the handlers did and what is stored."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from tests.chaos.client import Plan
from tests.chaos.ledger import Line, read

#: How long a start may come after the outcome was told, in seconds: a turn that looked for a stored outcome just
#: before there was one begins a moment later. It looks again if that was 0.5 s ago; then it notes that it begins,
#: which takes its time where a thousand do at once, and a machine may stall.
CROSSING_S = 3.0
#: The server writes down what it has delivered ten times a second; what came after the last time is forgotten
#: when it is killed. In seconds, with room for a server that stalls before.
FORGETS_S = 2.0
#: How long it takes until a kill is noticed, in seconds: until then a dead replica is handed tasks, and a replica
#: starts what a dead server had sent. 0.9 where four wanted each core (seen): the kernel takes a process apart at
#: that process's own priority, and a replica has a low one.
NOTICED_S = 3.0
#: How many of the tasks that don't add up are shown in full.
SHOWN = 8


@dataclass
class Account:
    """One run's books. `problems` has one line for each rule that a task breaks, by task id."""

    plan: Plan
    #: When each task was sent.
    sent: dict[str, float]
    outcomes: dict[str, list[Line]]
    turns: dict[str, list[Line]]
    story: list[Line]
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, folder: Path) -> Account:
        """Read a run's ledgers; nothing is judged yet."""
        plan, told = Plan.load(folder), read(folder / "client")
        outcomes, turns = defaultdict(list), defaultdict(list)
        for line in told:
            if line["what"] == "outcome":
                outcomes[plan.task_id(line["number"])].append(line)
        for line in read(folder / "handlers"):
            turns[line["task"]].append(line)
        sent = {plan.task_id(line["number"]): line["at"] for line in told if line["what"] == "sent"}
        lives = [line for line in told if line["what"] in ("began", "done")]
        story = sorted(read(folder / "kills") + lives, key=lambda line: line["at"])
        return cls(plan, sent, outcomes, turns, story)

    def starts(self, task: str) -> list[Line]:
        """The starts of its handler, in their order."""
        return [line for line in self._of(task) if line["what"] == "start"]

    def judge(self, stored: Mapping[str, int]) -> None:
        """Hold each task against the rules; `stored` counts the outcomes on each task's lite topic."""
        for task in sorted(self.sent.keys() | self.outcomes.keys() | self.turns.keys()):
            self._judge(task, stored.get(task, 0))

    def _judge(self, task: str, stored: int) -> None:
        wrong = self.problems[task].append
        if task not in self.sent:
            wrong("was never sent")
        if stored != 1:
            wrong(f"has {stored} stored outcomes")
        told, starts = self.outcomes.get(task, []), self.starts(task)
        if len(told) != 1:
            wrong(f"was told {len(told)} outcomes")
        for outcome in told:
            number = outcome["number"]
            if (outcome["kind"], outcome["data"]) != ("result", number * number):
                wrong(f"ended as {outcome['kind']} {outcome['data']!r}: {outcome['reason']}")
            if ("end", outcome["attempt"]) not in {(line["what"], line["attempt"]) for line in self._of(task)}:
                wrong(f"no attempt {outcome['attempt']} came to its end")
            if any(start["at"] > outcome["at"] + CROSSING_S for start in starts):
                wrong("was started again after its outcome was told")
        if not starts:
            wrong("was never started")
        if len({start["attempt"] for start in starts}) < len(starts) and task not in self.forgotten:
            wrong("ran twice as the same attempt")
        if starts and max(start["attempt"] for start in starts) > len(starts) + self._lost_beginnings(task):
            wrong("has attempts that never began")
        if not self.problems[task]:
            del self.problems[task]

    def _lost_beginnings(self, task: str) -> int:
        """Kills that may have hit a replica between the beginning of an attempt and the handler's first line."""
        began, ended = self.sent.get(task, 0.0), max((line["at"] for line in self._of(task)), default=0.0)
        hits = [line for line in self.story if line["what"] == "kill" and line["role"] in ("replica", "nats")]
        return sum(began - NOTICED_S < line["at"] < ended for line in hits)

    def _of(self, task: str) -> list[Line]:
        return self.turns.get(task, [])

    @property
    def repeated(self) -> set[str]:
        """Tasks whose handler was started more than once."""
        return {task for task in self.turns if len(self.starts(task)) > 1}

    @property
    def lapsed(self) -> set[str]:
        """Tasks that were started again before an earlier attempt had ended, or even begun.

        Its lease had lapsed, as on a machine that stalls for longer: whoever hands a task back has ended with it,
        and its outcome is that of the next attempt.
        """
        return self.overtaken | {
            task
            for task in self.repeated
            for second in self.starts(task)
            for line in self._of(task)
            if line["attempt"] < second["attempt"] and line["at"] >= second["at"]
        }

    def left_by_killed_replicas(self) -> set[str]:
        """Tasks with a turn that never came to its end, because its replica was killed."""
        victims = {line["victim"] for line in self.story if line["what"] == "kill" and line["role"] == "replica"}
        lines = [line for task in self.turns for line in self._of(task) if line["pid"] in victims]
        ended = {(line["task"], line["attempt"], line["pid"]) for line in lines if line["what"] != "start"}
        return {line["task"] for line in lines if (line["task"], line["attempt"], line["pid"]) not in ended}

    @property
    def overtaken(self) -> set[str]:
        """Tasks that were started again while an earlier attempt was still at work, which then ended them.

        Their lease had lapsed. Such an outcome tells the attempt that it came from.
        """
        return {
            task
            for task in self.repeated
            for outcome in self.outcomes[task]
            if max(start["attempt"] for start in self.starts(task)) > outcome["attempt"]
        }

    @cached_property
    def forgotten(self) -> set[str]:
        """Tasks that were handed out so shortly before the server was killed that it did not know any more.

        It handed them out anew, as the same attempt.
        """
        kills = [line["at"] for line in self.story if line["what"] == "kill" and line["role"] == "nats"]
        return {
            task
            for task in self.repeated
            for first, second in pairwise(self.starts(task))
            if first["attempt"] == second["attempt"]
            and any(-NOTICED_S < at - first["at"] < FORGETS_S for at in kills)
        }

    def summary(self) -> str:
        """The books in one line."""
        attempts = Counter(line["attempt"] for told in self.outcomes.values() for line in told)
        kinds = Counter(line["kind"] for told in self.outcomes.values() for line in told)
        return (
            f"seed {self.plan.seed}: {len(self.sent)} tasks, outcomes {dict(kinds)}, "
            f"attempts {dict(sorted(attempts.items()))}, {len(self.repeated)} ran more than once "
            f"({len(self.overtaken)} overtaken, {len(self.forgotten)} forgotten by the server)"
        )

    def report(self) -> str:
        """The books for a person: what does not add up, with the lines that say so."""
        kinds = Counter(line.split(":")[0] for lines in self.problems.values() for line in lines)
        text = [self.summary(), f"{len(self.problems)} tasks don't add up: {dict(kinds)}", "", "What happened:"]
        text += [f"  {line['at']:.2f} {line}" for line in self.story]
        for task, lines in list(self.problems.items())[:SHOWN]:
            text += ["", f"{task} {'; '.join(lines)}"]
            found = sorted(self._of(task) + self.outcomes.get(task, []), key=lambda line: line["at"])
            text += [f"  {line['at']:.2f} {line}" for line in found]
        return "\n".join(text)

    def assert_exact(self, stored: Mapping[str, int]) -> None:
        """Fail with the whole story unless every task has one outcome, and handlers ran as often as it says."""
        self.judge(stored)
        assert not self.problems, self.report()
        assert self.sent, "nothing was sent"
