"""Goals over strict providers: cards that these refuse end no run, and the timeline says what became of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.actors.goals.supervisor import Supervisor
from squadron.actors.thinking.model import ModelTurn, ToolCall
from squadron.runtime.asking.options import AskOptions
from squadron.runtime.wire.topics import AgentCard, SemanticTopic
from tests.contract.conftest import ON_NATS, Peer, Serve, stand_in, until
from tests.llm_servers import ScriptedAnthropicServer, ScriptedOpenAIServer

SERVERS = {"openai": ScriptedOpenAIServer, "anthropic": ScriptedAnthropicServer}
OBJECT: dict[str, Any] = {"type": "object"}


class Tailor(Agent):
    """Measures."""

    @topic("measure.size", description="Measure how long, and say it at length: " + "very " * 300)
    async def size(self, größe: int, maße: tuple[int, ...] = ()) -> int:
        return größe + sum(maße)


#: Cards as strangers write them; the names say what is wrong.
CARDS = {
    "measure.nothing": OBJECT,
    "measure.one-of": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    "measure.any-of": OBJECT
    | {"properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "measure.all-of": {"allOf": [OBJECT | {"properties": {"a": {}}}]},
    "measure.root-ref": {"$ref": "#/$defs/A", "$defs": {"A": OBJECT}},
    "measure.root-enum": {"enum": ["a", "b"]},
    "measure.text": {"type": "string"},
    "measure.names": OBJECT
    | {"properties": {"a.b": {}, "ü": {}, "x" * 65: {}, "": {}}, "required": ["ü", "lost"]},
    "measure.lists": OBJECT | {"properties": {"a": {"type": "array"}, "b": {"type": ["null", "array"]}}},
    "measure.keywords": OBJECT
    | {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "patternProperties": {"^(.*)$": {}},
        "propertyNames": {"pattern": "^a"},
        "additionalProperties": False,
        "if": {"required": ["a"]},
        "then": {"required": ["b"]},
    },
    "measure.old-draft": OBJECT | {"properties": {"a": {"type": "integer", "exclusiveMinimum": True}}},
    "measure.no-schema": {"type": "nonsense"},
    "measure.elsewhere": {"$ref": "https://example.com/schema.json"},
}
LEFT_OUT = {"measure.old-draft", "measure.no-schema", "measure.elsewhere"}


@ON_NATS
@pytest.mark.parametrize("provider", SERVERS)
async def test_a_run_that_finds_cards_that_its_provider_refuses_completes_and_says_what_became_of_them(
    provider: str, peer: Peer, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(body: dict[str, Any]) -> ModelTurn:
        tools = {t["name"]: t.get("input_schema") or t["parameters"] for t in map(_function, body["tools"])}
        assert tools.keys() >= {name.replace(".", "__") for name in CARDS.keys() - LEFT_OUT}
        said = json.dumps(body["messages"])
        if "Result of measure.size, call r1c2-" not in said:
            length, measures = tools["measure__size"]["properties"]
            call = ToolCall("m", "measure__size", {length: 40, measures: [1, 1]})
            return ModelTurn("", (ToolCall("d", "discover_topics", {"intent": "measure"}), call))
        return ModelTurn("", (ToolCall("f", "finish", {"answer": "done", "deliverables": {"n": {"$from": "m"}}}),))

    topics = tuple(SemanticTopic(name=name, input_schema=schema) for name, schema in CARDS.items())
    await peer.registry.advertise(AgentCard(agent="stranger", topics=topics))
    await stand_in(peer, "stranger", "stranger-1")
    await serve(Tailor(), name="tailor")
    supervisor = await serve(Supervisor())

    async def all_cards_are_known() -> bool:
        return all(supervisor.peer.registry.find(name) for name in (*CARDS, "measure.size"))

    await until(all_cards_are_known)
    with SERVERS[provider](play) as server:
        monkeypatch.setenv(f"{provider.upper()}_API_KEY", "a-key")
        monkeypatch.setenv(f"{provider.upper()}_BASE_URL", server.base_url)
        asked = {"goal": "measure it", "topics": ["measure.*"]}
        outcome = await peer.caller.ask("goal.pursue", asked, AskOptions(within_s=120.0, model=f"{provider}:test"))

    report = outcome.unwrap()
    assert (report["answer"], report["deliverables"]) == ("done", {"n": 42})
    assert report["tasks"]["outcomes"] == {"result": 1}
    offered = [event for event in report["timeline"] if event["event"] == "offered"]
    started = offered[0]
    assert started["left_out"].keys() == LEFT_OUT
    # Each of the others differs from what its author wrote.
    assert started["changed"].keys() == {*CARDS, "measure.size"} - LEFT_OUT
    assert "as the property 'value'" in started["changed"]["measure.one-of"]
    assert "'größe' as" in started["changed"]["measure.size"]
    assert "its description is cut" in started["changed"]["measure.size"]
    assert "without 'if', without 'patternProperties'" in started["changed"]["measure.keywords"]
    # Said once, however often they are found.
    assert not [event for event in offered[1:] if event.keys() & {"left_out", "changed"}]


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    function: dict[str, Any] = tool.get("function", tool)
    return function
