"""What a gateway is told, wherever it runs, and what its doors are given for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from squadron.bridge.gateways.door_secret import DoorSecret
from squadron.bridge.gateways.doors import WITHIN_S, Door, Front, OpenDoor
from squadron.bridge.gateways.http_guard import PER_SECOND, GuardRules
from squadron.bridge.gateways.http_server import check_bind
from squadron.bridge.gateways.oauth_tokens import OAuthRules, OAuthTokens
from squadron.bridge.gateways.open_questions import OpenQuestions
from squadron.bridge.gateways.visitors import TokenVerifier, Visitors, check_delegate
from squadron.bridge.place import Place
from squadron.config import Settings
from squadron.runtime.errors import ConfigError, UntrustedError
from squadron.runtime.secret import HINT, Secret
from squadron.runtime.trust.principals import TrustDocument
from squadron.runtime.trust.signer import Signer
from squadron.runtime.wire.subjects import check_pattern, check_token

#: A body may hold a message as base64, which is a third larger, and JSON around it. It is whole in memory before
#: it is known whether anybody wants it: so it has a limit of its own, in bytes.
_BASE64, _MOST_BODY = 1.4, 16 * 1024 * 1024


class GatewayOptions(BaseModel):
    """The options of `squadron gateway`, as they travel to whoever runs one; secrets by their places.

    Attributes:
        doors: the protocols that are served.
        lite: owners whose lite topics all visitors may read.
        push_to: hosts that news of tasks may be sent to though they are not public.
        tokens: of visitors, as `NAME=PLACE`.
        rate: requests a second of one visitor, and half of those that he may make at once after a pause.
        stateless: whether several processes are behind the URL.
        credentials: file of a user of the role `gateway`, for processes that are somebody else by themselves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    doors: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int
    public_url: str = ""
    secret: str = ""
    agents: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    lite: tuple[str, ...] = ()
    push_to: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    within_s: float = WITHIN_S
    rate: float = PER_SECOND
    stateless: bool = False
    credentials: str = ""

    @property
    def url(self) -> str:
        """What visitors use."""
        return self.public_url or f"http://{self.host}:{self.port}"

    @property
    def needs_http(self) -> bool:
        """Whether one of the doors listens; Synadia's is on NATS."""
        return any(name != "synadia" for name in self.doors)

    def check(self, settings: Settings) -> None:
        """See what can be seen before anything is connected.

        Raises:
            ConfigError: an option is wrong, or a token can't be had here.
            InvalidSubjectError: a pattern or an owner breaks the grammar.
            InvalidInputError: a setting of OAuth is wrong.
        """
        there = urlsplit(self.public_url)
        if self.public_url and (there.scheme not in ("http", "https") or not there.netloc):
            what = f"--public-url {self.public_url!r} is no URL"
            raise ConfigError(what, hint="for example https://agents.example.org")
        if self.secret and not Secret(self.secret).place:
            raise ConfigError("--secret was given as it is, where others can read it", hint=HINT)
        for pattern in self.topics:
            check_pattern(pattern)
        for owner in self.lite:
            check_token(owner, "owner")
        if settings.oauth_issuer and self.tokens:
            what = "visitors have tokens of an authorization server, or such of --token"
            raise ConfigError(what, hint="leave --token out, or SQUADRON_OAUTH_ISSUER")
        if self.needs_http:
            authenticated = bool(self.tokens or settings.oauth_issuer)
            check_bind(self.host, authenticated=authenticated, public_url=self.public_url)
        self.oauth(settings)
        Visitors.of(self.tokens)

    def oauth(self, settings: Settings) -> OAuthRules | None:
        """Whose access tokens count, if the settings name an authorization server.

        Raises:
            InvalidInputError: one of the settings is wrong.
        """
        if not settings.oauth_issuer:
            return None
        return OAuthRules.of(
            issuer=settings.oauth_issuer,
            audience=settings.oauth_audience or f"{self.url}/mcp",
            jwks_url=settings.oauth_jwks_url,
            scopes=settings.oauth_scopes.split(),
        )

    @asynccontextmanager
    async def running(self, place: Place, openers: Sequence[OpenDoor]) -> AsyncIterator[tuple[Front, list[Door]]]:
        """The doors, open as long as this is entered, and what they were given; raises as `front`."""
        async with AsyncExitStack() as rest:
            questions = OpenQuestions(place)
            questions.start()
            rest.push_async_callback(questions.aclose)
            front = self.front(place, questions)
            doors = [await opener(front) for opener in openers]
            for door in doors:
                await rest.enter_async_context(door.running())
            yield front, doors

    def front(self, place: Place, questions: OpenQuestions) -> Front:
        """What the doors are given.

        Raises:
            ConfigError: a token or the secret can't be had.
            UntrustedError: visitors could not be told apart on the bus.
        """
        settings = place.settings
        visitors, oauth = Visitors.of(self.tokens), self.oauth(settings)
        verifier: TokenVerifier | None = OAuthTokens(oauth) if oauth is not None else visitors or None
        check_delegate(place.ports.principal, tokens=verifier is not None)
        rules = GuardRules(
            hosts=(urlsplit(self.public_url).netloc.lower(),) if self.public_url else (),
            verifier=verifier,
            max_bytes=min(int(settings.max_message_bytes * _BASE64), _MOST_BODY),
            per_second=self.rate,
            at_once=2 * self.rate,
            scopes=oauth.scopes if oauth is not None else (),
            metadata_url=oauth.metadata_url if oauth is not None else "",
        )
        return Front(
            place=place,
            secret=DoorSecret.of(settings.home, Secret(self.secret)),
            questions=questions,
            topics=self.topics,
            agents=self.agents,
            lite=self.lite,
            push_to=self.push_to,
            url=self.public_url,
            within_s=self.within_s,
            rules=rules,
            oauth=oauth,
            stateless=self.stateless,
        )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> GatewayOptions:
        """Read them."""
        return cls.model_validate(dict(given))


def gateway_in(file: Path, settings: Settings) -> str:
    """The name of the gateway whose credentials a file has.

    Raises:
        ConfigError: it has none, or those of somebody else, as the trust document says where there is one.
    """
    signer = Signer.load(file)
    if settings.trust is not None:
        hint = "a gateway has its own: squadron auth add gateway doors"
        try:
            me = TrustDocument.load(settings.trust).principal(signer.token)
        except UntrustedError as error:
            raise ConfigError(f"{file}: {error}", hint=hint) from None
        if me.role != "gateway":
            raise ConfigError(f"{file} has the credentials of {me.name}, whose role is {me.role}", hint=hint)
    return signer.name
