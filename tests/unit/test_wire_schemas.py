"""What is exported for other languages is what the code reads and writes."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from typer.testing import CliRunner

from squadron.cli.app import app
from squadron.runtime.wire.envelope import AgentIdentity, AgentMessage
from squadron.runtime.wire.outcome import KINDS, Result
from squadron.views.wire_schemas import async_api, files, schemas

ROOT = Path(__file__).parents[2]
#: The official one of npm's `@asyncapi/specs` 6.11.1 (Apache-2.0), without its white space.
OFFICIAL = ROOT / "tests/unit/data/asyncapi-3.0.0.json.gz"


def official() -> jsonschema_rs.Draft7Validator:
    return jsonschema_rs.Draft7Validator(json.loads(gzip.decompress(OFFICIAL.read_bytes())))


def test_the_files_in_the_docs_are_those_of_the_code() -> None:
    there = {path.name: path.read_text() for path in (ROOT / "docs/schema").glob("*.json")}
    assert there == files(), "run: squadron schema --into docs/schema"


def test_the_command_writes_them_and_prints_them(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["schema", "--into", str(tmp_path)]).exit_code == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files()
    printed = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    assert printed == {**schemas(), "asyncapi": async_api()}
    taken = tmp_path / "outcome.json"
    refused = CliRunner().invoke(app, ["schema", "--into", str(taken)])
    assert refused.exit_code == 2


def test_the_asyncapi_document_is_one_by_the_official_schema() -> None:
    official().validate(async_api())


@pytest.mark.parametrize("broken", [{"asyncapi": "9"}, {"operations": {"ask": {"action": "shout"}}}])
def test_the_official_schema_does_refuse(broken: dict[str, Any]) -> None:
    assert not official().is_valid({**async_api(), **broken})


def test_all_references_of_the_asyncapi_document_lead_somewhere() -> None:
    document = async_api()
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        if reference.startswith("./"):
            assert reference.removeprefix("./") in files()
            continue
        found: Any = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


def test_parameters_are_those_of_the_address() -> None:
    for channel in async_api()["channels"].values():
        assert re.findall(r"{(\w+)}", channel["address"]) == list(channel["parameters"])


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_outcome_fits_its_schema(kind: str) -> None:
    validator = jsonschema_rs.Draft202012Validator(schemas()["outcome"])
    said = {"data": [1]} if kind == "result" else {"reason": "so", "details": {"field": "x"}}
    validator.validate(KINDS[kind](**said).to_content())
    assert not validator.is_valid({**KINDS[kind](**said).to_content(), "success": kind != "result"})


def test_messages_fit_their_schema() -> None:
    validator = jsonschema_rs.Draft202012Validator(schemas()["agent-message"])
    message = AgentMessage.new("result", AgentIdentity(id="a"), Result(data=1).to_content(), reply_to="agents.x")
    validator.validate(json.loads(message.encode()))
    assert not validator.is_valid({**json.loads(message.encode()), "type": "shout"})


@pytest.mark.parametrize(
    "block",
    re.findall(r"```json message\n(.*?)```", (ROOT / "docs/protocol.md").read_text(), re.S),
    ids=str.__len__,
)
def test_messages_of_the_docs_fit_their_schema(block: str) -> None:
    jsonschema_rs.Draft202012Validator(schemas()["agent-message"]).validate(json.loads(block))
