"""How an MCP server is reached, as hosts' `mcpServers` files say it; secrets by the place where they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from squadron.actors.remote.remote_names import agent_named
from squadron.actors.remote.secret_places import looked_up, refuse_secret
from squadron.runtime.errors import ConfigError, InvalidInputError

#: What the agent of a server is called, and the domain of its topics.
PREFIX = "mcp_"
#: A file with more is another one, in bytes.
_MOST_FILE_BYTES = 1024 * 1024


class OAuthClient(BaseModel):
    """How a program gets access tokens for a server, by OAuth 2.1.

    Attributes:
        issuer: URL of the authorization server; the secret is sent nowhere else.
        client_secret: where it is.
        refresh_token: where that is which a person got by signing in; by default the program signs in by itself.
        scope: what to ask for, separated by spaces; what the server tells, if it is empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, validate_by_name=True)

    issuer: str
    client_id: str = Field(min_length=1)
    client_secret: str = Field(min_length=1)
    refresh_token: str = ""
    scope: str = ""

    @model_validator(mode="after")
    def _issued(self) -> Self:
        there = urlsplit(self.issuer)
        is_here = there.hostname in ("localhost", "127.0.0.1", "::1")
        if not there.netloc or there.scheme not in (("http", "https") if is_here else ("https",)):
            raise ValueError(f"{self.issuer!r} is no https URL of an issuer")
        return self


class McpServer(BaseModel):
    """One server: a command that is started and spoken to on its standard streams, a URL, or a name on the bus.

    Attributes:
        cwd: the folder in which the command is started.
        bus: under which it is asked over NATS; see `mcp_bus.py`.
        oauth: how access tokens for the URL are got.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str = ""
    url: str = ""
    headers: dict[str, str] = Field(default_factory=dict)
    bus: str = ""
    oauth: OAuthClient | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.command) + bool(self.url) + bool(self.bus) != 1:
            raise ValueError("a server has a command, a url, or a name on the bus")
        if self.headers and not self.url:
            raise ValueError("headers go with a url")
        if self.oauth is not None and not self.url:
            raise ValueError("oauth goes with a url")
        if self.oauth is not None and any(name.lower() == "authorization" for name in self.headers):
            raise ValueError("the Authorization of a request is a header's or that of oauth, and not both")
        if not self.command and (self.args or self.env or self.cwd):
            raise ValueError("args, env and cwd go with a command")
        if self.url:
            there = urlsplit(self.url)
            if there.scheme not in ("http", "https") or not there.netloc:
                raise ValueError(f"{self.url!r} is no http or https URL")
            if "@" in there.netloc:
                raise ValueError("a URL is seen by many: give what is secret in a header")
        return self

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> McpServer:
        """Read one as `mcpServers` has it.

        Raises:
            InvalidInputError: it is wrong, or has a secret in it; `field` says where.
        """
        kind = given.get("type", given.get("transport", ""))
        if kind not in ("", "stdio", "http", "streamable-http", "streamableHttp"):
            hint = "stdio and streamable HTTP are; the older HTTP+SSE is not"
            raise InvalidInputError(
                f"a server of type {str(kind)[:40]!r} is not spoken to", field="type", hint=hint
            )
        try:
            server = cls.model_validate({name: given[name] for name in cls.model_fields if name in given})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))
            said = first["msg"].removeprefix("Value error, ")
            raise InvalidInputError(f"{field or 'the server'}: {said}", field=field) from None
        for field, text in server._texts():
            refuse_secret(field, text)
        return server

    def _texts(self) -> Iterator[tuple[str, str]]:
        for field in ("env", "headers"):
            yield from ((f"{field}.{name}", text) for name, text in getattr(self, field).items())
        yield from (("args", text) for text in self.args)
        if self.oauth is not None:
            yield "oauth.client_secret", self.oauth.client_secret
            yield "oauth.refresh_token", self.oauth.refresh_token
        yield "url", self.url

    def to_dict(self) -> dict[str, Any]:
        """As `mcpServers` has it."""
        return self.model_dump(mode="json", exclude_defaults=True, by_alias=True)

    @property
    def where(self) -> str:
        """In one line for people."""
        return self.url or self.bus or " ".join((self.command, *self.args))

    def looked_up(self) -> McpServer:
        """The same with what stands at the places that it names, for the process that speaks to it.

        Raises:
            ConfigError: something can't be had there; names the place.
        """
        said = self.model_dump()
        for field in ("env", "headers"):
            said[field] = {name: looked_up(text) for name, text in said[field].items()}
        said["args"] = tuple(map(looked_up, self.args))
        said |= {name: looked_up(said[name]) for name in ("command", "cwd", "url")}
        if self.oauth is not None:
            secrets = {name: looked_up(getattr(self.oauth, name)) for name in ("client_secret", "refresh_token")}
            said["oauth"] = self.oauth.model_copy(update=secrets)
        return McpServer.model_construct(**said)


def agent_of(name: str) -> str:
    """The agent of a server, which is the domain of its topics, too.

    Raises:
        InvalidInputError: it can't be one.
    """
    return agent_named(PREFIX, name)


def servers_in(path: Path) -> dict[str, McpServer]:
    """The servers of a file with `mcpServers`, as MCP hosts have one, by name.

    Raises:
        ConfigError: it can't be read.
        InvalidInputError: a server in it is wrong.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_FILE_BYTES + 1)
        said = json.loads(raw)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is no JSON", hint='{"mcpServers": {"NAME": {"command": "…"}}}') from None
    found = said.get("mcpServers", said.get("servers")) if isinstance(said, dict) else None
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise ConfigError(f"{path} names no mcpServers", hint='{"mcpServers": {"NAME": {"command": "…"}}}')
    servers = {}
    for name, given in found.items():
        agent_of(name)
        try:
            servers[name] = McpServer.of(given)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"{path}: {name}: {error.args[0]}", field=error.field, hint=error.hint
            ) from None
    return servers
