"""A run as a tree that fits on the screen: rounds, their calls, what waits for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

from squadron.cli import frame
from squadron.cli.tally import CallTally, Round, SummaryTally, Tally, describe

if TYPE_CHECKING:
    from squadron.actors.runs.shelf import SummaryView

#: What is shown of a model's words and of a reason, in characters: a line of a wide terminal.
SAID_CHARS = 100
#: Width of a bar, in cells.
BAR = 16
#: Calls of an older round that are shown one by one when the screen is full.
FEW_CALLS = 2


def short(text: str, characters: int = SAID_CHARS) -> str:
    """The text as one line without what could move a cursor, cut where it is longer."""
    line = frame.printable(" ".join(text.split()))
    return line if len(line) <= characters else f"{line[: characters - 1]}…"


def cost(tokens: int, usd: float) -> list[str]:
    """What was spent, as facts of a line."""
    return [*([f"{tokens:,} tokens"] if tokens else []), *([f"${usd:.4f}"] if usd else [])]


def line(mark: str, style: str, name: str, facts: Sequence[str], said: str = "") -> Text:
    """A line of a tree: its name, its figures, and last what may be cut off."""
    parts = [(f"{mark} " if mark else "", style), (name, "" if mark else "bold"), ("  ", "")]
    parts += [(" · ".join(facts), "dim"), (f"  {said}" if said else "", "")]
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def summarized(one: SummaryTally | SummaryView) -> Text:
    """The line of what was summarized to make room."""
    how = [one.model, f"{one.seconds:.1f} s", *cost(one.tokens, one.usd)] if one.model else ["an extract"]
    return line("≡", "dim", f"summarized {one.messages} messages", how)


@dataclass
class _Branch:
    """A round, the calls of it that are shown, and those that are only counted."""

    each: Round
    calls: list[CallTally]
    folded: list[CallTally]

    @property
    def lines(self) -> int:
        return 1 + len(self.each.trouble) + len(self.each.summarized) + len(self.calls) + bool(self.folded)

    def fold(self, most: int) -> None:
        """Show at most so many calls: those that wait for people, that run, that failed, and then the latest."""
        calls = [*self.folded, *self.calls]
        latest = sorted(calls, key=lambda call: -call.span.began_s)
        wanted = sorted(latest, key=lambda call: (not call.query, call.ended, not call.failed))[:most]
        self.calls = [call for call in calls if call in wanted]
        self.folded = [call for call in calls if call not in wanted]


def run_tree(tally: Tally, *, height: int) -> Tree:
    """The run so far, in at most so many lines where that can be: what is old is counted instead of told."""
    branches = [
        _Branch(each, [call for call in tally.calls.values() if call.round == number], [])
        for number, each in sorted(tally.rounds.items())
    ]
    tree = Tree("", hide_root=True, guide_style="grey50")
    for branch in branches:
        over = sum(each.lines for each in branches) - height
        if over > 0 and len(branch.calls) > FEW_CALLS:
            # The line that counts the rest needs its place, too.
            branch.fold(max(FEW_CALLS, len(branch.calls) - over - 1))
    hidden = 0
    while len(branches) - hidden > 1 and sum(each.lines for each in branches[hidden:]) + bool(hidden) > height:
        hidden += 1
    if hidden:
        old = branches[:hidden]
        calls = [call for each in old for call in (*each.calls, *each.folded)]
        figures = [*_ends_of(calls), *_spent(old, calls)]
        tree.add(line("", "", f"rounds 1 to {old[-1].each.number}", figures))
        # What still goes on is never out of sight.
        branches[hidden].calls = [*(call for call in calls if not call.ended), *branches[hidden].calls]
    for branch in branches[hidden:]:
        _grow(tree, branch, tally)
    return tree


def _spent(branches: Sequence[_Branch], calls: Sequence[CallTally]) -> list[str]:
    rounds = [branch.each for branch in branches]
    spenders: list[Round | CallTally | SummaryTally] = [*rounds, *calls]
    spenders += [one for each in rounds for one in each.summarized]
    return cost(sum(each.tokens for each in spenders), sum(each.usd for each in spenders))


def _grow(tree: Tree, branch: _Branch, tally: Tally) -> None:
    each, now_s = branch.each, tally.elapsed_s
    seconds = f"{each.span.seconds(now_s):.1f} s"
    thinks = each.span.ended_s is None
    facts = [f"thinking, {seconds}"] if thinks else [seconds, *cost(each.tokens, each.usd)]
    node = tree.add(line("", "", f"round {each.number}", facts, short(each.text)))
    for trouble in each.trouble:
        node.add(Text(f"! {short(trouble, 300)}", "yellow", no_wrap=True, overflow="ellipsis"))
    for one in each.summarized:
        node.add(summarized(one))
    if branch.folded:
        node.add(line("…", "dim", f"{len(branch.folded)} calls", _ends_of(branch.folded)))
    for call in branch.calls:
        node.add(_of_call(call, tally))


def _ends_of(calls: Sequence[CallTally]) -> list[str]:
    ends = sum((call.outcomes for call in calls), Counter[str]())
    running = sum(not call.ended for call in calls)
    told = [f"{count} {kind.replace('_', ' ')}" for kind, count in ends.items()]
    return [*told, *([f"{running} running"] if running else [])]


def _of_call(call: CallTally, tally: Tally) -> Text:
    seconds = f"{call.span.seconds(tally.elapsed_s):.1f} s"
    if call.query:
        how = f"squadron answer {call.query[:8]}"
        what = f"waits for approval: {how} --accept" if call.approval else f"waits for an answer: {how}"
        return Text.assemble(
            ("? ", "bold yellow"), call.topic, "  ", (what, "yellow"), no_wrap=True, overflow="ellipsis"
        )
    counts = f"{call.done}/{call.tasks}"
    replicas = tally.replicas(call.topic)
    if not call.ended:
        many = [counts] if call.tasks > 1 else []
        serve = [f"{replicas} replica{'s' if replicas != 1 else ''}"] if replicas else []
        shown = line("●", "cyan", call.topic, [*many, seconds, *serve, *_failures(call)])
        if call.tasks > 1:
            shown.append_text(Text("  ").append_text(bar(call)))
        return shown
    good = not call.failed
    # The note of a call of one task that went well says nothing.
    note = "" if good and call.tasks <= 1 and not call.answered_by else describe(call)
    facts = [*([note] if note else []), seconds, *cost(call.tokens, call.usd)]
    reason = short(next(iter(call.reasons), ""))
    return line("✓" if good else "✗", "green" if good else "red", call.topic, facts, reason)


def _failures(call: CallTally) -> list[str]:
    return [f"{call.failed} failed"] if call.failed else []


def bar(call: CallTally) -> Text:
    """How far a call is: what went well, what failed, and what is left."""

    def width(count: int) -> int:
        return round(BAR * count / max(1, call.tasks))

    good, bad = width(call.outcomes["result"]), width(call.failed)
    return Text.assemble(("━" * good, "green"), ("━" * bad, "red"), ("━" * max(0, BAR - good - bad), "grey30"))
