"""What leaves an agent fits the schema that it advertises, and is the input of one that takes the same type."""

from __future__ import annotations

import dataclasses
import json
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import jsonschema_rs
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, computed_field
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict

from squadron import Agent, topic
from squadron.actors.agent import AgentSpec
from squadron.actors.handlers import BoundHandler
from squadron.runtime.running.handler import OutputError


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


#: Types of fields, and their values.
_PLAIN: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers(-(2**53), 2**53)),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (str, st.text(st.characters(exclude_categories=["Cs"]))),
    (bool, st.booleans()),
    (Mood, st.sampled_from(Mood)),
    (date, st.dates()),
    (datetime, st.datetimes()),
    (timedelta, st.timedeltas(timedelta(0), timedelta(days=400))),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False, places=2)),
    (UUID, st.uuids()),
]


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def optional(it: Any) -> Any:
        return it[0] | None, st.none() | it[1]

    def many(it: Any) -> Any:
        return list[it[0]], st.lists(it[1], max_size=3)

    def by_name(it: Any) -> Any:
        return dict[str, it[0]], st.dictionaries(st.text("abc", max_size=3), it[1], max_size=3)

    return st.one_of(inner.map(optional), inner.map(many), inner.map(by_name), _objects(inner))


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> tuple[Any, st.SearchStrategy[Any]]:
    """A model, dataclass or typed dict, whose fields may have aliases, and its instances."""
    names = ["one_field", "two_field", "from_", "größe"][: draw(st.integers(1, 4))]
    fields = {name: draw(inner) for name in names}
    aliases = {name: draw(st.sampled_from(["", f"{name.strip('_')}Alias", f"{name}-x"])) for name in names}
    hints = {
        n: Annotated[kind, Field(alias=aliases[n])] if aliases[n] else kind for n, (kind, _) in fields.items()
    }
    values = st.fixed_dictionaries({name: value for name, (_, value) in fields.items()})
    match draw(st.sampled_from(["model", "camel", "dataclass", "pydantic dataclass", "typed dict"])):
        case "model":
            made: Any = pydantic.create_model("Made", **{n: (hint, ...) for n, hint in hints.items()})
            return made, values.map(lambda held: made(**{aliases[n] or n: v for n, v in held.items()}))
        case "camel":
            config = ConfigDict(alias_generator=to_camel, populate_by_name=True)
            plain: dict[str, Any] = {n: (kind, ...) for n, (kind, _) in fields.items()}
            camel: Any = pydantic.create_model("Camel", __config__=config, **plain)
            return camel, values.map(lambda held: camel(**held))
        case "dataclass":
            data = dataclasses.make_dataclass("Data", list(hints.items()))
            adapter = TypeAdapter(data)
            # Checked, as models do: unchecked, a typed dict in it would have to be by name.
            return data, values.map(
                lambda held: adapter.validate_python({aliases[n] or n: v for n, v in held.items()})
            )
        case "pydantic dataclass":
            checked: Any = pydantic.dataclasses.dataclass(
                dataclasses.make_dataclass("Checked", list(hints.items()))
            )
            return checked, values.map(lambda held: checked(**{aliases[n] or n: v for n, v in held.items()}))
        case _:
            typed = TypedDict("Typed", hints)  # type: ignore[misc]
            # By alias: a model that holds one reads no other.
            return typed, values.map(lambda held: {aliases[n] or n: v for n, v in held.items()})


_TYPES = st.recursive(st.sampled_from(_PLAIN), _nested, max_leaves=5)


def _handler(kind: Any) -> BoundHandler:
    class Mirror(Agent):
        @topic("mirror.it")
        async def it(self, value: kind) -> kind:
            return value

    Mirror.it.__annotations__.update({"value": kind, "return": kind})
    return AgentSpec.of(Mirror).handlers(Mirror())[0]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_what_leaves_fits_its_schema_and_is_the_input_of_who_takes_the_same_type(data: st.DataObject) -> None:
    kind, values = data.draw(_TYPES)
    handler = _handler(kind)
    value = data.draw(values)

    sent = json.loads(json.dumps(handler._spec.dump(value), allow_nan=False))

    jsonschema_rs.validator_for(handler.topic.output_schema).validate(sent)
    handler.topic.check({"value": sent})
    received = handler._spec.arguments({"value": sent})["value"]
    assert handler._spec.dump(received) == sent


class Weather(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)

    wind_speed: float
    feels_like: list[Weather] = []

    @computed_field
    def is_stormy(self) -> bool:
        return self.wind_speed > 20


class Later(BaseModel):
    at: int


@pytest.mark.parametrize("value", [Weather(windSpeed=1.0), {"windSpeed": 1.0}, {"wind_speed": 1.0}])
def test_a_result_goes_out_by_alias_whichever_way_it_was_written(value: Any) -> None:
    assert _handler(Weather)._spec.dump(value) == {"windSpeed": 1.0, "feelsLike": [], "isStormy": False}


def test_an_instance_that_was_spoilt_later_does_not_leave() -> None:
    spoilt = Later(at=1)
    spoilt.at = "noon"  # type: ignore[assignment]

    with pytest.raises(OutputError, match=r"mirror\.it"):
        _handler(Later)._spec.dump(spoilt)


def test_the_schema_of_a_model_is_that_of_what_is_read_and_of_what_is_written() -> None:
    topic = _handler(Weather).topic

    assert "isStormy" not in json.dumps(topic.input_schema)
    assert "isStormy" in json.dumps(topic.output_schema)
    assert TypeAdapter(Weather).json_schema(mode="serialization") == topic.output_schema
