"""How an A2A agent elsewhere is reached; secrets by the place where they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from squadron.actors.remote.remote_names import agent_named
from squadron.actors.remote.secret_places import looked_up, refuse_secret
from squadron.runtime.errors import InvalidInputError
from squadron.runtime.wire.subjects import token_of

#: What the agent is called that stands for one elsewhere, and the domain of its topics.
PREFIX = "a2a_"


class A2aServer(BaseModel):
    """One agent elsewhere.

    Attributes:
        url: of the agent, below which its card is; or of the card.
        headers: of each request, as `Authorization`.
        keys: the keys that its card may be signed by, as a JSON Web Key Set; without them it need not be signed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    headers: dict[str, str] = Field(default_factory=dict)
    keys: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_url(self) -> Self:
        there = urlsplit(self.url)
        if there.scheme not in ("http", "https") or not there.hostname:
            raise ValueError(f"{self.url[:200]!r} is no http or https URL")
        if "@" in there.netloc:
            raise ValueError("a URL is seen by many: give what is secret in a header")
        if self.keys and not isinstance(self.keys.get("keys"), list):
            raise ValueError('keys is a JSON Web Key Set: {"keys": [...]}')
        return self

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> A2aServer:
        """Read one.

        Raises:
            InvalidInputError: it is wrong, or has a secret in it; `field` says where.
        """
        try:
            server = cls.model_validate(dict(given))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or "url"
            said = first["msg"].removeprefix("Value error, ")
            raise InvalidInputError(f"{field}: {said}", field=field) from None
        for name, text in server.headers.items():
            refuse_secret(f"headers.{name}", text)
        if any("d" in each for each in server.keys.get("keys", ()) if isinstance(each, dict)):
            raise InvalidInputError("that is a private key", field="keys", hint="give its public half")
        return server

    def to_dict(self) -> dict[str, Any]:
        """As JSON data without secrets."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def headers_now(self) -> dict[str, str]:
        """The headers, with what stands at the places that they name.

        Raises:
            ConfigError: something can't be had there; names the place.
        """
        return {name: looked_up(text) for name, text in self.headers.items()}


def agent_for(name: str) -> str:
    """The agent that stands for one elsewhere, by the name that it is given or has there.

    Raises:
        InvalidInputError: it can't be one.
    """
    return agent_named(PREFIX, name)


def name_from(card_name: str) -> str:
    """A name here for an agent that is called so there."""
    plain = "".join(each if each.isascii() and each.isalnum() else "_" for each in card_name.strip().lower())
    return token_of(plain.strip("_") or "agent")[: 64 - len(PREFIX)]


def keys_in(text: str) -> dict[str, Any]:
    """The keys in a file.

    Raises:
        InvalidInputError: it is no JSON.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInputError(
            "the keys are no JSON", field="keys", hint='{"keys": [{"kty": "OKP", …}]}'
        ) from None
    found: dict[str, Any] = said if isinstance(said, dict) and "keys" in said else {"keys": [said]}
    return found
