"""The two LLM providers, OpenAI and Anthropic, as `Model`s over their official SDKs, and how to name them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from squadron.actors.thinking.anthropic_messages import MessagesWire
from squadron.actors.thinking.credentials import VARIABLES, given, key_of, value_of
from squadron.actors.thinking.in_background import InBackground
from squadron.actors.thinking.model import Model
from squadron.actors.thinking.openai_chat import ChatWire
from squadron.actors.thinking.openai_responses import ResponsesWire
from squadron.actors.thinking.provider_model import ProviderModel, patience
from squadron.runtime.errors import ConfigError, ModelError

#: The current mid-size model in the SDK's `ChatModel` (openai 3.54): half the price of the Sol tier.
DEFAULT_OPENAI_MODEL = "gpt-6.1-terra"

#: The current mid-size model in the SDK's `Model` (anthropic 2.12): half the price of Opus 5.5.
DEFAULT_ANTHROPIC_MODEL = "claude-sonnet-5-5"

#: The providers, by the names of their SDKs.
PROVIDERS = ("openai", "anthropic")

_OPENAI_HOST = "api.openai.com"


class OpenAIModel(ProviderModel):
    """A model of OpenAI, or behind any server that speaks one of its APIs.

    Reads `OPENAI_API_KEY` and `OPENAI_BASE_URL` where no argument is given; without a key it raises
    `ModelError`. No `model` means `DEFAULT_OPENAI_MODEL`. `api` is "responses" at OpenAI and "chat" (chat
    completions) elsewhere, because few servers speak the former; on "chat", models that can't both reason and call
    tools there (gpt-5.6 and later) are told not to reason when there are tools.
    """

    _provider = "openai"
    _default_model = DEFAULT_OPENAI_MODEL

    def __init__(
        self, model: str = "", *, api: Literal["responses", "chat"] | None = None, **options: Any
    ) -> None:
        self._api = api
        super().__init__(model, **options)

    def _connect(self, **options: Any) -> Any:
        # Checked here, because the SDK is content with an admin key, which can't chat.
        if not options["api_key"]:
            raise ModelError("there is no API key for OpenAI", hint="set OPENAI_API_KEY")
        import openai  # takes a second

        organization = {"organization": value_of("OPENAI_ORG_ID"), "project": value_of("OPENAI_PROJECT_ID")}
        options |= {name: value for name, value in organization.items() if value}
        client = openai.AsyncOpenAI(timeout=patience(openai, self._between_events_s), **options)
        is_official = client.base_url.host == _OPENAI_HOST
        if self._api == "responses" or (self._api is None and is_official):
            self._wire, self._create = ResponsesWire(), client.responses.create
        else:
            self._wire, self._create = ChatWire(is_official=is_official), client.chat.completions.create
        return client


class BackgroundModel(InBackground, OpenAIModel):
    """A model of OpenAI whose calls survive who made them, for the price that OpenAI stores the conversation.

    Always over the Responses API. A server that takes `background` and does nothing about it may be asked as well:
    a call that it forgot is made again, as with any other model.
    """

    def __init__(self, model: str = "", **options: Any) -> None:
        super().__init__(model, api="responses", **options)

    def _connect(self, **options: Any) -> Any:
        client = super()._connect(**options)
        self._wire = ResponsesWire(in_background=True)
        return client


class AnthropicModel(ProviderModel):
    """A Claude model behind Anthropic's messages API.

    Reads `ANTHROPIC_API_KEY` and `ANTHROPIC_BASE_URL` where no argument is given; without a key it raises
    `ModelError`, but the SDK's other ways to sign in (auth token, profile, workload identity) count as one.
    No `model` means `DEFAULT_ANTHROPIC_MODEL`.
    """

    _provider = "anthropic"
    _default_model = DEFAULT_ANTHROPIC_MODEL

    def _keys(self) -> dict[str, str | None]:
        if keys := super()._keys():
            return keys
        token = key_of("ANTHROPIC_AUTH_TOKEN")
        return {"auth_token": token} if token else {}

    def _connect(self, **options: Any) -> Any:
        import anthropic  # takes a second

        client = anthropic.AsyncAnthropic(timeout=patience(anthropic, self._between_events_s), **options)
        # The SDK itself would only notice at the first request.
        if not (client.api_key or client.auth_token or client.credentials):
            raise ModelError("there is no API key for Anthropic", hint="set ANTHROPIC_API_KEY")
        # Not `messages.stream`: its accumulator raises when the arguments of a tool call are bad JSON.
        self._wire, self._create = MessagesWire(), client.messages.create
        return client


_MODELS: dict[str, Callable[[str], Model]] = {
    "openai": OpenAIModel,
    "openai-chat": lambda name: OpenAIModel(name, api="chat"),
    "openai-responses": lambda name: OpenAIModel(name, api="responses"),
    "openai-background": BackgroundModel,
    "anthropic": AnthropicModel,
}


def model_from(spec: str) -> Model:
    """The model that `spec` names: `PROVIDER` or `PROVIDER:NAME`, of `openai`, `openai-chat`, `openai-responses`,
    `openai-background` and `anthropic`. The second and third say which of OpenAI's APIs to use, see `OpenAIModel`;
    with the fourth a call outlives who made it, see `BackgroundModel`.

    Raises:
        ConfigError: `spec` has another form.
        ModelError: there is no API key for the provider.
    """
    provider, colon, model = spec.strip().partition(":")
    if provider in _MODELS and bool(colon) == bool(model):
        return _MODELS[provider](model)
    hint = (
        "use openai, openai:NAME, anthropic, anthropic:NAME, or offline for no LLM at all; "
        "openai-chat:NAME and openai-responses:NAME name the API, too, and openai-background:NAME survives crashes"
    )
    raise ConfigError(f"{spec!r} names no model", hint=hint)


def provider_of(spec: str) -> str:
    """What a spec names before its colon, without the API: `openai` of `openai-chat:NAME`."""
    return spec.strip().partition(":")[0].partition("-")[0]


def model_key(spec: str) -> str:
    """What a model of this spec depends on, to keep models by: it changes with the provider's keys and address.

    It holds no key, only a digest; of a key that is kept at a place, that of the place.
    """
    said = given()
    prefix = provider_of(spec).upper()
    # Stripped, as they are once a model has been made.
    depends = {name: said.get(name, "").strip() for name in VARIABLES if name.startswith(f"{prefix}_")}
    return f"{spec.strip()}#{hashlib.sha256(repr(depends).encode()).hexdigest()[:16]}"


def default_model_spec(env: Mapping[str, str]) -> str:
    """The model to use when none is named: `SQUADRON_MODEL`, else the provider with a key, else `offline`."""
    with_key = (name for name in PROVIDERS if env.get(f"{name.upper()}_API_KEY", "").strip())
    return env.get("SQUADRON_MODEL", "").strip() or next(with_key, "offline")
