"""Signatures of cards: a client that knows the gateway's key can tell a card of its from one of anybody else's."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.types.a2a_pb2 import AgentCard
from a2a.utils._jcs import canonicalize
from a2a.utils.signing import create_agent_card_signer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt import api_jws
from jwt.algorithms import OKPAlgorithm

from squadron.bridge.gateways.door_secret import DoorSecret

#: Ed25519, as JOSE calls it (RFC 8037).
ALGORITHM = "EdDSA"


class CardSigner:
    """Signs cards with a key that follows from the gateway's secret: all its processes have the same one.

    Attributes:
        kid: names the key.
        jwks: its public half, as a JSON Web Key Set.
    """

    def __init__(self, secret: DoorSecret) -> None:
        key = Ed25519PrivateKey.from_private_bytes(secret.key("signatures of A2A cards"))
        public: dict[str, Any] = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
        # Its thumbprint (RFC 7638): the members that make the key, by name.
        members = {name: public[name] for name in ("crv", "kty", "x")}
        canonical = json.dumps(members, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).digest()
        self.kid = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        self.jwks = {"keys": [members | {"kid": self.kid, "alg": ALGORITHM, "use": "sig"}]}
        # No `jku`: nobody should fetch a key from where an unproven card says.
        self._key, self._header = key, {"alg": ALGORITHM, "kid": self.kid, "typ": "JOSE"}
        self._sign = create_agent_card_signer(key, self._header)  # type: ignore[arg-type]

    def signed(self, card: AgentCard) -> dict[str, Any]:
        """The card as it is served, with its signatures.

        Before they sign, the SDKs take out what is empty, also where that means something, as in a JSON Schema;
        the specification has it stay (8.4.1). There is a signature for either: a client goes by the one that fits.
        """
        plain = agent_card_to_dict(card)
        whole = api_jws.encode(canonicalize(plain).encode(), self._key, ALGORITHM, self._header)
        protected, _, signature = whole.split(".")
        served: dict[str, Any] = agent_card_to_dict(self._sign(card))
        served["signatures"].append({"protected": protected, "signature": signature})
        return served
