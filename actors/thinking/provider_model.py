"""What all providers share: one request over an official SDK, its stream under a watch, and what it came to."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Protocol

from squadron.actors.thinking.answers import AnswerForm
from squadron.actors.thinking.assemble import TurnParts, mended
from squadron.actors.thinking.credentials import clean_key, key_of, tidy_variables, value_of
from squadron.actors.thinking.model import ModelRequest, ModelTurn
from squadron.actors.thinking.provider_errors import FailedResponseError, model_error
from squadron.runtime.errors import ConfigError, ModelError
from squadron.runtime.redact import keep_address, scrub
from squadron.runtime.secret import Secret, resolved

#: Until the first event, and between two signs of life: a model that works sends pings or events far more often,
#: and a stalled connection would otherwise be sat through for the 600 s of the SDKs.
DEFAULT_FIRST_EVENT_S = DEFAULT_BETWEEN_EVENTS_S = 60.0

#: Sends a body, or asks for the stream of an answer to it.
OpenStream = Callable[[dict[str, Any]], Awaitable[Any]]

#: To connect, as the SDKs have it.
_CONNECT_S = 5.0


class ProviderWire(Protocol):
    """One API of a provider: how requests look, and what its events mean. Does no I/O and keeps nothing."""

    def takes_format(self, model: str, request: ModelRequest) -> bool:
        """Whether a schema can be given as the format of the answer."""
        ...

    def body(self, model: str, who: str, request: ModelRequest, form: AnswerForm | None) -> dict[str, Any]:
        """What to send; `form` is set where its format is to be used."""
        ...

    def read(self, parts: TurnParts, event: Any) -> None:
        """Take in one event."""
        ...

    def blocks(self, parts: TurnParts, turn: ModelTurn) -> tuple[dict[str, Any], ...]:
        """What the turn keeps to go back to the same model, besides text and calls."""
        ...


class ProviderModel(ABC):
    """A model behind one provider's SDK. It asks once: whoever wants more tries again.

    Args:
        model: its name at the provider; empty is the default one.
        api_key: from the environment where None. It may be the place where the key is kept, as in `env:NAME` or
            `file:PATH`: it is looked up for each call, so that one that was rotated is used from then on.
        base_url: of another server that speaks the same; from the environment where None. May be a place, too.
        first_event_s: longest time until the first event, in seconds.
        between_events_s: longest silence of the connection, in seconds; a ping ends it.

    Raises:
        ModelError: there is no key, or one that can't be sent.
    """

    _provider: ClassVar[str]
    _default_model: ClassVar[str]
    _create: Callable[..., Awaitable[Any]]
    _wire: ProviderWire

    def __init__(
        self,
        model: str = "",
        *,
        api_key: str | Secret | None = None,
        base_url: str | None = None,
        first_event_s: float = DEFAULT_FIRST_EVENT_S,
        between_events_s: float = DEFAULT_BETWEEN_EVENTS_S,
    ) -> None:
        self._model = model or self._default_model
        self._first_event_s, self._between_events_s = first_event_s, between_events_s
        prefix = self._provider.upper()
        self._own_key = api_key if isinstance(api_key, Secret) else Secret((api_key or "").strip())
        tidy_variables(prefix)
        keys = self._keys()
        address = resolved((base_url or "").strip()) or value_of(f"{prefix}_BASE_URL")
        keep_address(address)
        try:  # the SDKs read the environment for None only, and an empty key or address is none
            keys |= {"api_key": keys.get("api_key")}
            self._client = self._connect(**keys, base_url=address or None, max_retries=0)
        except ModelError:
            raise
        except Exception as error:
            hint = f"check the {prefix}_* variables"
            message = f"the {self._provider} client can't be set up: {scrub(str(error))}"
            raise ModelError(message, hint=hint) from error

    @property
    def name(self) -> str:
        """The provider and the model, as in `openai:gpt-5`."""
        return f"{self._provider}:{self._model}"

    async def think(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelTurn:
        """Run one model turn; see `Model.think`."""
        return await self._turn(request, on_text, self._ask)

    async def _ask(self, body: dict[str, Any]) -> Any:
        return await self._create(model=self._model, stream=True, **body)

    async def _turn(
        self,
        request: ModelRequest,
        on_text: Callable[[str], None] | None,
        open_stream: OpenStream,
        on_accepted: Callable[[str], Awaitable[None]] | None = None,
        response_id: str = "",
    ) -> ModelTurn:
        """The turn that a stream tells; `response_id` is that of the answer, if it is known before."""
        form = AnswerForm(request.output_schema) if request.output_schema is not None else None
        in_format = form if form and form.format and self._wire.takes_format(self._model, request) else None
        if form and not in_format:
            request = replace(request, tools=(*request.tools, form.tool))
        body = _sendable(self._wire.body(self._model, self.name, request, in_format))
        # An answer that is written in another form than it is read can't be shown as it comes.
        as_it_comes = form is None or (in_format is not None and not form.is_changed)
        tools = frozenset(tool.name for tool in request.tools)
        parts = TurnParts(on_text if as_it_comes else None, tools, _length_of(body), response_id=response_id)
        async with aclosing(self._events(partial(open_stream, body), parts)) as events:
            async for event in events:
                self._read(parts, event)
                if on_accepted is not None and parts.response_id:
                    await on_accepted(parts.response_id)
                    on_accepted = None
        turn = self._finished(parts)
        if form is not None:
            turn = form.of(turn)
            if on_text is not None and not as_it_comes and turn.text:
                on_text(turn.text)
        return turn

    async def aclose(self) -> None:
        """Close the connections to the provider. May be called twice."""
        await self._client.close()

    @abstractmethod
    def _connect(self, **options: Any) -> Any: ...

    def _keys(self) -> dict[str, str | None]:
        """What the provider knows us by, as it is now, under the name that the SDK's client has for it.

        Raises:
            ConfigError: it is kept at a place where it can't be had, or can't be sent.
        """
        key = clean_key("api_key", self._own_key.value()) or key_of(f"{self._provider.upper()}_API_KEY")
        return {"api_key": key} if key else {}

    async def _renew_keys(self) -> None:
        """Give the SDK the keys as they are now. In a thread: a function of the user's own may take its time.

        Raises:
            ModelError: a key can't be had.
        """
        try:
            keys = await asyncio.to_thread(self._keys)
        except ConfigError as error:
            raise ModelError(
                f"there is no key for {self.name}: {error.args[0]}", hint=error.hint, kind="key"
            ) from None
        for name, key in keys.items():
            setattr(self._client, name, key)

    def _read(self, parts: TurnParts, event: Any) -> None:
        try:
            self._wire.read(parts, event)
        except FailedResponseError as error:
            raise self._error(error, parts) from error
        except Exception as error:
            if error is parts.broken_by:
                raise
            message = scrub(f"{self.name} sent what can't be read: {error!r}")
            hint = "check that the server speaks this API"
            raise ModelError(message, hint=hint, **_known(parts)) from error

    def _finished(self, parts: TurnParts) -> ModelTurn:
        turn = parts.finish(self.name)
        try:
            return replace(turn, blocks=tuple(mended(block) for block in self._wire.blocks(parts, turn)))
        except ValueError:  # nested too deep to be kept; text and calls are whole
            return turn

    async def _events(
        self, open_stream: Callable[[], Awaitable[Any]], parts: TurnParts
    ) -> AsyncGenerator[Any, None]:
        heard = False
        await self._renew_keys()
        try:
            async with asyncio.timeout(self._first_event_s) as patience:
                async with await open_stream() as stream:
                    async for event in stream:
                        patience.reschedule(None)
                        heard = True
                        yield event
        # Nothing but SDK code raises in here, so whatever it is, the call failed: besides their own errors
        # the SDKs let httpx2, ssl and JSON errors through once the stream has begun.
        except Exception as error:
            raise self._error(error, parts if heard else None) from error

    def _error(self, cause: Exception, parts: TurnParts | None) -> ModelError:
        known = _known(parts) if parts else {}
        is_status = hasattr(cause, "status_code")
        if isinstance(cause, TimeoutError) or ("Timeout" in type(cause).__name__ and not is_status):
            silent_s = self._between_events_s if parts else min(self._first_event_s, self._between_events_s)
            message = f"{self.name} was silent for {silent_s:g} s"
            hint = "try again; a slow server needs a larger first_event_s or between_events_s"
            return ModelError(message, hint=hint, kind="passing", **known)
        return model_error(cause, self.name, str(self._client.base_url), **known)


def _known(parts: TurnParts) -> dict[str, Any]:
    return {"tokens": parts.spent().total, "began": parts.began}


def patience(sdk: Any, between_events_s: float) -> Any:
    """The timeout of an SDK's transport, which hears pings and comments that no event tells of."""
    return sdk.Timeout(between_events_s, connect=min(_CONNECT_S, between_events_s))


def _sendable(body: dict[str, Any]) -> dict[str, Any]:
    try:
        sendable: dict[str, Any] = mended(body)
    except ValueError as error:
        raise ModelError(f"the conversation can't be sent: {error}", hint="send plain JSON values") from None
    return sendable


def _length_of(body: dict[str, Any]) -> int:
    """Characters of what a model reads. Base64 counts little: what an image costs can't be told from outside."""

    def size(value: Any) -> int:
        if isinstance(value, str):
            is_text = len(value) < 1_000 or not value.isascii() or " " in value[:1_000]
            return len(value) if is_text else 100
        if isinstance(value, dict):
            return sum(len(name) + size(part) for name, part in value.items())
        return sum(map(size, value)) if isinstance(value, list) else len(str(value))

    read = {name: body[name] for name in ("messages", "input", "system", "tools") if name in body}
    return size(read)
