"""Vectors of a server that speaks OpenAI's API: over real HTTP, with what such servers get wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from squadron.actors.thinking.embedding import open_embedder
from squadron.runtime.errors import ConfigError, ModelError
from tests.contract.vector_server import Vectors, vectors_served


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Vectors]]:
    with vectors_served(monkeypatch) as served:
        yield served


async def test_vectors_come_over_http_in_the_order_of_the_texts(server: type[Vectors]) -> None:
    embedder = open_embedder("openai:tiny")
    assert embedder is not None
    texts = ["weather", "money", ""]

    vectors = await embedder.embed(texts)

    assert embedder.name == "openai:tiny"
    assert [len(vector) for vector in vectors] == [512] * 3
    for text, vector in zip(["weather", "money", " "], vectors, strict=True):
        assert vector == pytest.approx(server.encoder.vectors([text])[0], abs=1e-5)
    assert server.asked[0]["model"] == "tiny"
    assert server.keys[0] == "Bearer sk-of-the-test"


@pytest.mark.parametrize("fault", ["refused", "rubbish", "too few"])
async def test_a_server_that_gets_it_wrong_is_a_model_error_without_its_secrets(
    server: type[Vectors], fault: str
) -> None:
    server.fault = fault
    embedder = open_embedder("openai:tiny")
    assert embedder is not None

    with pytest.raises(ModelError) as failed:
        await embedder.embed(["weather", "money"])
    assert "sk-secret" not in str(failed.value)


def test_without_a_key_it_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError) as refused:
        open_embedder("openai:tiny")
    assert "OPENAI_API_KEY" in refused.value.hint
