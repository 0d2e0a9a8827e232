"""Ids that say until when a task may take, and that nobody makes without the key."""

from __future__ import annotations

import pytest

from squadron.bridge.gateways.telling_ids import TellingIds
from squadron.runtime.wire.subjects import check_token

OWNER, AT_MS = "v" + 24 * "a", 1_800_000_000_123
IDS = TellingIds(32 * b"k")


def test_an_id_says_its_deadline_where_its_topic_is_known() -> None:
    id = IDS.make(OWNER, "talk.say", AT_MS)
    assert check_token(id, "id").startswith(f"{OWNER}-")
    assert IDS.deadline_of(id, "talk.say") == AT_MS
    assert IDS.deadline_of(id, "talk.other") is None
    assert TellingIds(32 * b"x").deadline_of(id, "talk.say") is None
    assert IDS.make(OWNER, "talk.say", AT_MS) != id


@pytest.mark.parametrize("place", [0, 30, 45, 63])
def test_an_id_that_was_changed_is_none(place: int) -> None:
    id = IDS.make(OWNER, "talk.say", AT_MS)
    changed = id[:place] + ("1" if id[place] == "0" else "0") + id[place + 1 :]
    assert IDS.deadline_of(changed, "talk.say") is None


@pytest.mark.parametrize("id", ["", "-", "v-t", f"{OWNER}-{32 * 'f'}", f"{OWNER}-{38 * 'é'}", "../../x.>"])
def test_what_is_no_such_id_says_nothing(id: str) -> None:
    assert IDS.deadline_of(id, "talk.say") is None
