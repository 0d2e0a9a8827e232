"""The cards of agents as A2A has them."""

from __future__ import annotations

from importlib.metadata import version

from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentExtension,
    AgentInterface,
    AgentSkill,
    HTTPAuthSecurityScheme,
    SecurityRequirement,
    SecurityScheme,
    StringList,
)
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from squadron.bridge.gateways.a2a.a2a_parts import input_schema
from squadron.bridge.gateways.a2a.contract_net import CONTRACT_NET
from squadron.bridge.gateways.doors import Front
from squadron.runtime.wire import topics
from squadron.runtime.wire.a2a_names import SCHEMAS

#: Where the agents are.
ROOT = "/a2a"
#: What parts may be.
MODES = ("application/json", "text/plain")


def served(front: Front) -> dict[str, list[topics.SemanticTopic]]:
    """The topics that are served through this gateway, by agent; a family is none, as no skill can name it."""
    found: dict[str, list[topics.SemanticTopic]] = {}
    for topic, agent in front.place.registry.topics():
        if not topic.is_pattern and front.serves(topic.name, agent):
            found.setdefault(agent, []).append(topic)
    return found


def a2a_card(front: Front, agent: str, skills: list[topics.SemanticTopic], at: str) -> AgentCard:
    """The card of an agent, with an address for each binding below the URL `at`."""
    card = next((each for each in front.place.registry.cards() if each.agent == agent), None)
    url = f"{at}{ROOT}/{agent}"
    schemas = {each.name: {"input": input_schema(each), "output": each.output_schema} for each in skills}
    made = AgentCard(
        name=agent,
        # The SDKs drop what is empty though it is required, and a signature would not fit then.
        description=(card.description if card is not None else "") or agent,
        version=version("squadron-ray"),
        supported_interfaces=[
            AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0"),
            AgentInterface(url=f"{url}/v1", protocol_binding="HTTP+JSON", protocol_version="1.0"),
        ],
        capabilities=AgentCapabilities(
            streaming=True,
            push_notifications=True,
            extended_agent_card=False,
            extensions=[
                AgentExtension(
                    uri=SCHEMAS,
                    description="JSON Schemas of the inputs and outputs of skills, by their id",
                    required=False,
                    params=ParseDict(schemas, Struct()),
                ),
                AgentExtension(
                    uri=CONTRACT_NET,
                    description="Says what it would do a task for: cfp, propose, accept-proposal, reject-proposal",
                    required=False,
                ),
            ],
        ),
        default_input_modes=MODES,
        default_output_modes=MODES,
        skills=[
            AgentSkill(
                id=each.name,
                name=each.name,
                description=each.description or each.name,
                tags=each.tags or (agent,),
                examples=each.examples,
            )
            for each in skills
        ],
    )
    if front.rules.verifier is not None:
        made.security_schemes["bearer"].CopyFrom(
            SecurityScheme(http_auth_security_scheme=HTTPAuthSecurityScheme(scheme="Bearer"))
        )
        made.security_requirements.append(SecurityRequirement(schemes={"bearer": StringList()}))
    return made
