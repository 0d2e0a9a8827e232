"""The accountant: holds what the client was told against what the handlers did and what is stored."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.client import Plan
from tests.chaos.ledger import Line, read

#: How many of the tasks that don't add up are shown in full.
SHOWN = 8


@dataclass
class Account:
    """One run's books. `problems` has one line for each rule that a task breaks, by task id."""

    plan: Plan
    sent: set[str]
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
        sent = {plan.task_id(line["number"]) for line in told if line["what"] == "sent"}
        lives = [line for line in told if line["what"] in ("began", "done")]
        story = sorted(read(folder / "kills") + lives, key=lambda line: line["at"])
        return cls(plan, sent, outcomes, turns, story)

    def starts(self, task: str) -> list[int]:
        """The attempts that began, in order of their beginning."""
        return [line["attempt"] for line in self.turns.get(task, ()) if line["what"] == "start"]

    def judge(self, stored: Mapping[str, int]) -> None:
        """Hold each task against the rules; `stored` counts the outcomes on each task's lite topic."""
        for task in sorted(self.sent | self.outcomes.keys() | self.turns.keys()):
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
            if len(starts) > outcome["attempt"]:
                wrong(f"ran {len(starts)} times, but its outcome says attempt {outcome['attempt']}")
        if not starts:
            wrong("was never started")
        if len(set(starts)) != len(starts):
            wrong(f"ran twice as the same attempt: {starts}")
        if not self.problems[task]:
            del self.problems[task]

    def _of(self, task: str) -> list[Line]:
        return self.turns.get(task, [])

    @property
    def repeated(self) -> dict[str, int]:
        """Tasks whose handler ran more than once, and how often."""
        return {task: count for task in self.turns if (count := len(self.starts(task))) > 1}

    def summary(self) -> str:
        """The books in one line."""
        attempts = Counter(line["attempt"] for told in self.outcomes.values() for line in told)
        kinds = Counter(line["kind"] for told in self.outcomes.values() for line in told)
        return (
            f"seed {self.plan.seed}: {len(self.sent)} tasks, outcomes {dict(kinds)}, "
            f"{len(self.repeated)} ran more than once, attempts {dict(sorted(attempts.items()))}"
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
