"""How long a failed task waits for its next attempt."""

from __future__ import annotations

import pytest

from squadron.runtime.retries import backoff_s


@pytest.mark.parametrize(("attempt", "longest_s"), [(1, 0.5), (2, 1.0), (5, 8.0), (7, 30.0), (10_000, 30.0)])
def test_a_pause_doubles_up_to_a_limit_and_half_of_it_is_chance(attempt: int, longest_s: float) -> None:
    pauses = [backoff_s(attempt, 0.5, 30.0) for _ in range(200)]

    assert longest_s / 2 <= min(pauses) < max(pauses) <= longest_s
