"""A squad in a file: what is read, what is refused, and how it differs from what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from squadron.actors.agent import Agent, AgentSpec
from squadron.actors.decorators import topic
from squadron.client.declared import Change, DeclaredAgent, DeclaredSquad, beside, changes_of
from squadron.runtime.errors import ConfigError, InvalidAgentError
from squadron.runtime.wire.deployment import Deployment, Scale


class Poet(Agent):
    """Writes."""

    @topic("poem.write")
    async def write(self, subject: str) -> str:
        return subject


def _deployment(**changes: Any) -> Deployment:
    bounds = Scale(minimum=1, maximum=4)
    card = AgentSpec.of(Poet).card()
    made = Deployment(card=card, code={"version": "v1"}, slots=32, grace_s=20, bounds=bounds, scale=bounds)
    return made.model_copy(update=changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("agents: [", "no YAML"),
        ("agents:\n  - {class: 'a:B', scael: 2}", "agents.0.scael"),
        ("agents:\n  - {class: 'a:B', scale: 4..2}", "agents.0.scale"),
        ("agents:\n  - {class: 'a:B', slots: 0}", "agents.0.slots"),
        ("agents:\n  - {class: 'a:B', canary: 101}", "agents.0.canary"),
        ("agents:\n  - {class: 'a:B', canary: some}", "agents.0.canary"),
        ("agents:\n  - {slots: 1}", "agents.0.class"),
        ("agents:\n  - {class: 'a:B'}\n  - {class: 'a:B'}", "a:B stands there twice"),
        ("", "the file"),
        ("- 1", "the file"),
    ],
)
def test_a_file_with_a_mistake_is_refused_and_told_where(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "squad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        DeclaredSquad.load(path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        DeclaredSquad.load(tmp_path / "squad.yaml")


def test_two_agents_of_one_name_are_refused() -> None:
    class Other(Poet):
        name = "poet"

    declared = DeclaredSquad.model_validate({"agents": [{"class": "a:Poet"}, {"class": "a:Other"}]})
    with pytest.raises(InvalidAgentError):
        declared.specs({"a:Poet": Poet, "a:Other": Other}.__getitem__)


def test_what_the_file_says_counts_and_what_it_does_not_is_the_class_s() -> None:
    pinned = DeclaredAgent.model_validate({"class": "a:Poet", "scale": 3, "slots": 2}).applied(_deployment())
    assert (str(pinned.scale), str(pinned.bounds), pinned.slots, pinned.grace_s) == ("3", "1..4", 2, 20)
    ranged = DeclaredAgent.model_validate({"class": "a:Poet", "scale": "0..9"}).applied(_deployment())
    assert (str(ranged.scale), str(ranged.bounds)) == ("0..9", "0..9")


def test_only_what_differs_is_changed() -> None:
    as_it_is = _deployment()
    # The bridge adds the key, which is no difference.
    running = {"poet": as_it_is.model_copy(update={"card": as_it_is.card.with_key("k")}), "old": as_it_is}
    assert changes_of({"poet": as_it_is}, running) == [Change("poet", "keep", {})]
    by_hand = {"poet": _deployment(scale=Scale(minimum=2, maximum=2, pinned=True))}
    assert changes_of({"poet": as_it_is}, by_hand) == [Change("poet", "keep", {})]
    (scaled,) = changes_of({"poet": as_it_is}, by_hand, scaled=["poet"])
    assert (scaled.what, dict(scaled.fields)) == ("change", {"scale": ("2", "1..4")})
    (coded,) = changes_of({"poet": _deployment(code={"version": "v2"})}, by_hand)
    assert (str(coded), coded.what) == ("~ poet: code v1 → v2", "change")
    added, removed = changes_of({"poet": as_it_is}, {"old": as_it_is}, prune=True)
    assert (added.what, str(removed)) == ("add", "- old")


@pytest.mark.parametrize("written", [10, "10", "10%", " 10 % "])
def test_the_share_of_a_canary_is_written_as_people_do(written: object) -> None:
    assert DeclaredAgent.model_validate({"class": "a:Poet", "canary": written}).canary == 10


def test_new_code_with_a_share_is_tried_beside_what_runs_and_nothing_else_changes() -> None:
    running, new = _deployment(), _deployment(code={"version": "v2"})
    (added,) = changes_of({"poet": beside(running, new, 10)}, {"poet": running})
    assert str(added) == "~ poet: canary v2 10 %"
    tried = beside(running, new, 10)
    assert changes_of({"poet": beside(tried, new, 10)}, {"poet": tried}) == [Change("poet", "keep", {})]
    (more,) = changes_of({"poet": beside(tried, new, 50)}, {"poet": tried})
    assert str(more) == "~ poet: canary v2 10 % → v2 50 %"

    # Without the line the new code is all that is to run, and with the old code the canary is to go.
    (promoted,) = changes_of({"poet": new}, {"poet": tried})
    assert str(promoted) == "~ poet: canary v2 10 % → none, code v1 → v2"
    (aborted,) = changes_of({"poet": beside(tried, running, 10)}, {"poet": tried})
    assert str(aborted) == "~ poet: canary v2 10 % → none"
    # Served once, the same file changes nothing.
    assert changes_of({"poet": beside(new, new, 10)}, {"poet": new}) == [Change("poet", "keep", {})]
