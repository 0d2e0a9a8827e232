"""Names of streams: no two of whatever environments and agents meet."""

from __future__ import annotations

import string

from hypothesis import example, given
from hypothesis import strategies as st

from squadron.bridge.jetstream.stream_names import StreamNames

#: Mostly of what the names of streams are made of, so that they would meet.
_NAMES = st.one_of(
    st.lists(
        st.sampled_from(
            ["own", "line", "tasks", "lite", "runs", "events", "claims", "audit", "a", "prod", "", "_"]
        ),
        min_size=1,
        max_size=4,
    ).map("-".join),
    st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=8),
).filter(bool)
_KINDS = ("tasks", "lite", "registry", "dead", "runs", "bucket", "events", "audit", "intake")


def _all(environment: str, agent: str) -> dict[str, tuple[str, ...]]:
    """What each name of a stream is for."""
    names = StreamNames(environment)
    shared = {str(getattr(names, kind)): (environment, kind) for kind in _KINDS}
    return {
        **shared,
        names.own(agent): (environment, "own", agent),
        names.line(agent): (environment, "line", agent),
    }


@given(_NAMES, _NAMES, _NAMES, _NAMES)
@example("prod", "tasks", "prod-own", "a")
@example("prod", "tasks", "prod-line", "a")
@example("p", "x-own-y", "p-own-x", "y")
@example("p", "x-line-y", "p-own-x", "y")
def test_no_two_streams_of_whatever_environments_and_agents_have_one_name(
    environment: str, agent: str, other: str, another: str
) -> None:
    mine, theirs = _all(environment, agent), _all(other, another)
    assert len(mine) == len(_KINDS) + 2
    assert all(theirs[name] == what for name, what in mine.items() if name in theirs)
