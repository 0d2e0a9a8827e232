"""How often topics and tasks may go from squad to squad."""

from __future__ import annotations

import math
from typing import Any

import pytest

from squadron.runtime.wire.doors_passed import (
    MOST_DOORS,
    MOST_HOPS,
    budget_of_hops,
    doors_tags,
    doors_to,
    hops_after,
)
from squadron.runtime.wire.limits import UNLIMITED, Budget
from squadron.runtime.wire.topics import SemanticTopic


def test_a_topic_that_goes_round_between_two_squads_is_left_out_in_the_end() -> None:
    topic = SemanticTopic(name="work.do")
    for _ in range(MOST_DOORS):
        topic = SemanticTopic(name="mcp_there.do", tags=("mcp", *doors_tags(doors_to(topic))))
    with pytest.raises(ValueError, match="goes round"):
        doors_tags(doors_to(topic))


@pytest.mark.parametrize("told", [None, "", "x", "-1", 0, "²", "9" * 5000, {}, True])
def test_who_tells_no_number_of_doors_is_no_door_of_ours(told: Any) -> None:
    assert doors_tags(told) == ()
    assert doors_to(SemanticTopic(name="work.do", tags=(f"doors:{told}",))) == 1


def test_a_task_that_is_handed_on_and_on_has_no_hops_left_in_the_end() -> None:
    budget, handed_on = UNLIMITED, 0
    while (hops := hops_after(budget)) >= 0:
        budget, handed_on = budget_of_hops(float(hops)), handed_on + 1
    assert handed_on == MOST_HOPS + 1
    assert hops_after(Budget(hops=1000)) < MOST_HOPS


@pytest.mark.parametrize("told", ["8", True, math.nan, math.inf, MOST_HOPS + 1, -1e300, {}])
def test_what_is_no_number_of_hops_is_refused(told: Any) -> None:
    with pytest.raises(ValueError, match="hops are a whole number"):
        budget_of_hops(told)
