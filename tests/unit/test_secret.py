"""A secret by the place where it is kept: looked up where it is used, and nowhere else."""

from __future__ import annotations

import json
import os
import pickle
import re
import secrets
import stat
from pathlib import Path

import pytest

from squadron import Secret, Settings
from squadron.actors.thinking.credentials import given, key_of, remember_keys
from squadron.actors.thinking.providers import AnthropicModel, OpenAIModel, model_key
from squadron.client.squad import _identity
from squadron.runtime.errors import ConfigError, SquadronError
from squadron.runtime.redact import scrub
from squadron.servers import _travelling, stop_local

PLANTED = f"planted{secrets.token_hex(8)}"
URL = f"nats://eve:{PLANTED}@host:4222"
#: What a function of the user's own returns; see `told`.
told_value: object = PLANTED


def told() -> object:
    if isinstance(told_value, Exception):
        raise told_value
    return told_value


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The same secret at each kind of place."""
    monkeypatch.setenv("KEPT_HERE", f"{PLANTED}\r\n")
    (tmp_path / "secret").write_text(f"{PLANTED}\n")
    return {
        "env": "env:KEPT_HERE",
        "file": f"file:{tmp_path / 'secret'}",
        "call": f"call:{__name__}:{told.__name__}",
    }


@pytest.mark.parametrize("kind", ["env", "file", "call"])
def test_a_secret_is_looked_up_where_it_is_kept_and_travels_as_that_place(kept: dict[str, str], kind: str) -> None:
    secret = Secret(kept[kind])

    assert secret.value() == PLANTED
    assert scrub(f"it is {PLANTED}") == "it is [secret]"
    for shown in (
        repr(secret),
        str(secret),
        f"{secret}",
        repr({"a": secret}),
        pickle.dumps(secret).decode("latin1"),
    ):
        assert PLANTED not in shown
        assert secret.place in shown
    assert pickle.loads(pickle.dumps(secret)) == secret


def test_a_secret_given_as_it_is_is_neither_shown_nor_travels() -> None:
    secret = Secret(PLANTED)

    assert secret.value() == PLANTED
    assert PLANTED not in f"{secret!r}{secret}"
    with pytest.raises(ConfigError, match="does not travel") as caught:
        pickle.dumps(secret)
    assert "file:PATH" in caught.value.hint
    with pytest.raises(TypeError):
        json.dumps(secret)
    assert not Secret()
    assert pickle.loads(pickle.dumps(Secret())) == Secret()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("env:NOT_HERE_AT_ALL", "no such variable"),
        ("file:/nowhere/at/all", "can't be read: No such file"),
        ("file:/", "can't be read"),
        ("file:/dev/zero", "is larger than"),
        ("file:/dev/null", "is empty"),
        ("call:nowhere.at_all:told", "failed: ModuleNotFoundError"),
        (f"call:{__name__}:nothing", "failed: AttributeError"),
    ],
)
def test_a_place_where_nothing_is_is_named_with_the_fix(place: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Secret(place).value()
    assert place in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "value", [ValueError(PLANTED), PLANTED.encode(), None], ids=["raises", "bytes", "nothing"]
)
def test_what_a_function_does_wrong_shows_no_secret(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "told_value", value)
    with pytest.raises(ConfigError) as caught:
        Secret(f"call:{__name__}:told").value()
    assert PLANTED not in f"{caught.value!r}{caught.value}{caught.value.__cause__!r}{caught.value.to_dict()}"


@pytest.mark.parametrize(
    "given",
    [{"NATS_URL": URL}, {"NATS_URL": "nats://host", "NATS_USER": "eve", "NATS_PASSWORD": PLANTED}],
    ids=["in the URL", "beside it"],
)
def test_settings_travel_with_the_place_of_a_secret_and_never_with_it(
    given: dict[str, str], tmp_path: Path
) -> None:
    """L6."""
    settings = Settings.load(given, home=tmp_path)
    for way in (lambda: pickle.dumps(settings), settings.environ):
        with pytest.raises(ConfigError, match=r"nats_(url|password): .* does not travel") as caught:
            way()
        assert PLANTED not in f"{caught.value!r}{caught.value.to_dict()}"
        assert "file:PATH" in caught.value.hint

    travelling = _travelling(settings)
    there = pickle.loads(pickle.dumps(travelling))
    assert there == travelling
    for shown in (pickle.dumps(travelling).decode("latin1"), repr(travelling), str(travelling.environ())):
        assert PLANTED not in shown
    (file,) = (tmp_path / "secrets").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert PLANTED in file.read_text()
    assert Settings.load(travelling.environ()) == travelling

    stop_local(settings)
    assert not file.exists()


def test_a_secret_as_it_is_is_refused_for_a_cluster_of_ones_own(tmp_path: Path) -> None:
    settings = Settings.load({"NATS_URL": URL}, home=tmp_path, ray_address="10.0.0.1:6379")
    with pytest.raises(ConfigError, match="nats_url"):
        pickle.dumps(_travelling(settings))
    by_place = Settings.load({"NATS_URL": "env:KEPT_THERE"}, home=tmp_path, ray_address="10.0.0.1:6379")
    assert pickle.loads(pickle.dumps(_travelling(by_place))).nats_url == "env:KEPT_THERE"


def test_a_client_does_not_tell_its_host() -> None:
    """L9."""
    assert re.fullmatch("client-[0-9a-f]{12}", _identity().id)


# Keys of providers


@pytest.mark.parametrize("kind", ["env", "file", "call"])
def test_a_key_may_be_kept_at_a_place_and_only_that_is_remembered(
    kept: dict[str, str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", kept[kind])
    remember_keys(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("SQUADRON_HOME", str(tmp_path))

    assert PLANTED not in (tmp_path / "model-keys.json").read_text()
    assert key_of("OPENAI_API_KEY") == PLANTED
    before = model_key("openai:m")
    monkeypatch.setenv("KEPT_HERE", "another")
    (tmp_path / "secret").write_text("another")
    assert model_key("openai:m") == before  # the same model goes on, with the new key


def test_what_is_remembered_gets_into_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """L7: agents' code, and what it starts, would find it there."""
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://eve:{PLANTED}-2@127.0.0.1:9/v1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-team={PLANTED}-3")
    remember_keys(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OTEL_EXPORTER_OTLP_HEADERS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SQUADRON_HOME", str(tmp_path))

    model = OpenAIModel("m")
    assert model._client.api_key == PLANTED
    assert PLANTED in given()["OTEL_EXPORTER_OTLP_HEADERS"]
    assert not any(PLANTED in value for value in os.environ.values())
    for text in (PLANTED, f"eve:{PLANTED}-2", f"x-team={PLANTED}-3"):
        assert PLANTED not in scrub(text)


@pytest.mark.parametrize("make", [OpenAIModel, AnthropicModel])
def test_a_key_that_is_not_where_it_should_be_is_told(make: type, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = make._provider.upper()
    monkeypatch.setenv(f"{prefix}_API_KEY", "file:/nowhere/at/all")
    with pytest.raises(SquadronError, match="file:/nowhere/at/all can't be read"):
        make("m")
