"""The topics of a gateway as Synadia's agents: names, records of `$SRV.INFO`, heartbeats."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib.metadata import version
from typing import Any

from squadron.bridge.gateways.doors import Front
from squadron.bridge.gateways.synadia.prompt_wire import takes_attachments
from squadron.runtime.wire.doors_passed import doors_to
from squadron.runtime.wire.subjects import ROOT
from squadron.runtime.wire.topics import SemanticTopic

PROTOCOL = "0.3"
#: Name of all services of the protocol, and of the group of those that answer prompts.
SERVICE, GROUP = "agents", "agents"
#: Longest token of a subject (§2).
MOST_NAME = 63
#: Between two heartbeats, in seconds (§8).
HEARTBEAT_S = 30
#: An author's wish that a topic is not to be found here.
HIDDEN_TAG = "synadia:hidden"
#: What a prompt may hold where the server takes 1 MB, in the protocol's words.
MAX_PAYLOAD = "1MB"


@dataclass(frozen=True)
class SynadiaAgent:
    """A topic as an agent. Its id is the same in all processes of a gateway: they are one.

    Attributes:
        trust: what callers need to be heard.
        identity: who answers there, as the protocol registers it; empty where this process signs nothing.
    """

    topic: SemanticTopic
    agent: str
    owner: str
    session: str
    trust: str
    identity: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        return hashlib.sha256(f"{self.owner} {self.topic.name}".encode()).hexdigest()[:22]

    def subject(self, verb: str) -> str:
        """Where it is prompted, or asked for its status; where its heart beats (`hb`)."""
        return f"{ROOT}.{verb}.{self.agent}.{self.owner}.{self.session}"

    def head(self) -> dict[str, Any]:
        """What each answer about a service begins with (NATS ADR-32)."""
        metadata = {"agent": self.agent, "owner": self.owner, "session": self.session}
        metadata |= {"protocol_version": PROTOCOL, "squadron_topic": self.topic.name}
        metadata |= {"squadron_doors": str(doors_to(self.topic)), **self.identity}
        return {"name": SERVICE, "id": self.id, "version": _semver(), "metadata": metadata}

    @cached_property
    def info(self) -> bytes:
        """Its record of `$SRV.INFO`; made once, as each who looks for agents asks for those of all."""
        told = {
            **self.head(),
            "type": "io.nats.micro.v1.info_response",
            "description": self.topic.tool_description or self.topic.name,
            "endpoints": [
                {
                    "name": "prompt",
                    "subject": self.subject("prompt"),
                    "queue_group": GROUP,
                    "metadata": self._accepts | {"input_schema": json.dumps(self.topic.input_schema)},
                },
                {"name": "status", "subject": self.subject("status"), "queue_group": GROUP, "metadata": {}},
            ],
        }
        return json.dumps(told).encode()

    def heartbeat(self) -> bytes:
        """A sign of life; `status` answers the same."""
        said: dict[str, Any] = {"agent": self.agent, "owner": self.owner, "session": self.session}
        said |= {"instance_id": self.id}
        said |= {"ts": datetime.now(UTC).isoformat().replace("+00:00", "Z"), "interval_s": HEARTBEAT_S}
        prompt = {"subject": self.subject("prompt"), "metadata": self._accepts}
        return json.dumps(said | {"protocol_version": PROTOCOL, "endpoints": {"prompt": prompt}}).encode()

    @property
    def _accepts(self) -> dict[str, str]:
        attachments = "true" if takes_attachments(self.topic) else "false"
        return {"max_payload": MAX_PAYLOAD, "attachments_ok": attachments, "min_sender_trust": self.trust}


class SynadiaAgents:
    """All of them, as the registry has them now."""

    def __init__(self, front: Front, trust: str) -> None:
        self._front, self._trust = front, trust
        self.owner = _token(f"squadron-{front.place.settings.env}")
        self._found = dict[tuple[str, str], SynadiaAgent]()

    def all(self) -> list[SynadiaAgent]:
        """Each of them, by the names of their topics."""
        found: dict[tuple[str, str], SynadiaAgent] = {}
        for topic, agent in sorted(self._front.place.registry.topics(), key=lambda each: each[0].name):
            if topic.is_pattern or HIDDEN_TAG in topic.tags or not self._front.serves(topic.name, agent):
                continue
            kind, session = _token(agent), _token(topic.name.replace(".", "-"))
            if (kind, session) in found:  # two that differ by what the protocol does not tell apart
                session = _digested(topic.name)
            known = self._found.get((kind, session))
            # A topic that changed is another value.
            is_same = known is not None and known.topic is topic
            found[kind, session] = known if known is not None and is_same else self._made(topic, kind, session)
        self._found = found
        return list(found.values())

    def _made(self, topic: SemanticTopic, kind: str, session: str) -> SynadiaAgent:
        """One of them, with who answers there, signed, so that nobody else can say so (§13)."""
        plain = SynadiaAgent(topic, kind, self.owner, session, self._trust)
        if (signer := self._front.place.signer) is None:
            return plain
        lines = ("AGENT-ID-V1", signer.user, signer.account, kind, self.owner, plain.subject("prompt"), "")
        identity = {"user_nkey": signer.user, "account": signer.account}
        return replace(plain, identity=identity | {"id_sig": signer.sign_text("\n".join(lines))})

    def find(self, agent: str, session: str) -> SynadiaAgent | None:
        """The one of these tokens."""
        found = self._found.get((agent, session))
        if found is None or self._front.place.registry.find(found.topic.name) is not found.topic:
            # It came, changed or left since they were last looked through.
            self.all()
            found = self._found.get((agent, session))
        return found


@cache
def _token(name: str) -> str:
    """A name as a token of the protocol: lower case, and not long."""
    fits = re.fullmatch(rf"[a-z0-9-]{{1,{MOST_NAME}}}", name) is not None
    return name if fits else _digested(name)


def _digested(name: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub('[^a-z0-9-]', '-', name.lower())[: MOST_NAME - 9]}-{digest}"


@cache
def _semver() -> str:
    found = re.match(r"\d+\.\d+\.\d+", version("squadron-ray"))
    return found[0] if found else "0.0.0"
