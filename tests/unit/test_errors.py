"""All our errors cross process borders with what they know."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from squadron.runtime import errors
from squadron.runtime.errors import ModelError, OutcomeError, Retry, SquadronError
from squadron.runtime.wire.outcome import Failed

#: Arguments beside the message, for those that have fields of their own.
FIELDS: dict[str, dict[str, Any]] = {
    "InvalidMessageError": {"field": "routing.priority", "hint": "0 to 9"},
    "InvalidInputError": {"field": "text", "hint": "takes text"},
    "ModelError": {"kind": "limit", "retry_after_s": 2.5, "hint": "later"},
    "OutcomeError": {"outcome": Failed(reason="no")},
    "Park": {"deadline_ms": 1_795_219_200_000},
    "Retry": {"after_s": 2.5},
    "Terminal": {},
}
ALL = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, SquadronError)]


def _example(kind: type[SquadronError]) -> SquadronError:
    return kind("what happened", **FIELDS.get(kind.__name__, {"hint": "do this"}))


@pytest.mark.parametrize("kind", ALL)
def test_each_survives_pickle_with_its_fields(kind: type[SquadronError]) -> None:
    error = _example(kind)
    back = pickle.loads(pickle.dumps(error))

    assert type(back) is kind
    assert str(back) == str(error)
    assert vars(back) == vars(error)
    assert back.retryable == error.retryable


@pytest.mark.parametrize("kind", ALL)
def test_each_travels_as_json_with_its_plain_fields(kind: type[SquadronError]) -> None:
    error = _example(kind)
    back = SquadronError.from_dict(json.loads(json.dumps(error.to_dict())))

    assert type(back) is kind
    assert str(back) == str(error)
    assert vars(back) == vars(error) | ({"outcome": None} if kind is OutcomeError else {})
    assert back.retryable == error.retryable


@pytest.mark.parametrize("kind", ALL)
def test_fields_that_did_not_travel_get_their_defaults(kind: type[SquadronError]) -> None:
    back = SquadronError.from_dict({"type": kind.__name__, "message": "m"})

    assert vars(back) == vars(kind("m"))


@pytest.mark.parametrize(
    "raw", [{}, {"type": "FromTheFuture", "message": "m"}, {"type": "KeyError"}, {"type": None}]
)
def test_an_unknown_kind_is_a_plain_squadron_error(raw: dict[str, Any]) -> None:
    back = SquadronError.from_dict(raw)

    assert type(back) is SquadronError
    assert str(back) == raw.get("message", "")


def test_the_hint_is_shown() -> None:
    assert str(SquadronError("no key", hint="set one")) == "no key (set one)"
    assert str(SquadronError("no key")) == "no key"


def test_what_may_work_later_says_so() -> None:
    later = {"BusUnavailableError", "BridgeUnavailableError", "ServerUnavailableError", "StorageFullError"}
    assert {kind.__name__ for kind in ALL if kind.retryable is True} == later
    assert ModelError("busy", kind="passing").retryable
    assert not ModelError("bad key").retryable
    assert Retry().after_s == 1.0
