"""No secret in a reason, a log line, a dead letter or an error that travels."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import pytest

from squadron.actors.thinking.credentials import remember_keys, tidy_variables
from squadron.actors.thinking.providers import AnthropicModel, OpenAIModel
from squadron.bridge.serve.local import _is_passed_on
from squadron.config import Settings
from squadron.runtime.errors import BusUnavailableError, ConfigError, DeployError, Terminal
from squadron.runtime.redact import keep_secret, scrub, scrub_all
from squadron.runtime.retries import failure_details, traceback_of
from squadron.runtime.wire.outcome import DeadLettered, Failed

PLANTED = "planted-secret-6f1a"


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", f"{PLANTED}\r\n")
    monkeypatch.setenv("NATS_URL", f"nats://eve:{PLANTED}%2Fx@host")


@pytest.mark.parametrize(
    "text",
    [
        PLANTED,
        f"Illegal header value b'Bearer {PLANTED}\\r\\n'",
        f"password {PLANTED}/x or {PLANTED}%2Fx",
        "Illegal header value b'Bearer planted-secret-unknown'",
        "sk-proj-planted-secret-unknown",
        "nats://eve:planted-secret-unknown@host:4222",
        "https://planted-secret-token@host",
    ],
)
def test_known_secrets_and_what_looks_like_one_are_struck_out(text: str) -> None:
    assert "planted" not in scrub(text)
    assert "planted" not in Failed(reason=text).reason
    assert "planted" not in str(DeadLettered(details={"last_error": text, "more": [text]}).to_content())
    assert "planted" not in str(DeployError(text, hint=text).to_dict())
    error = ValueError(text)
    assert "planted" not in traceback_of(error) + str(failure_details(error, 1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MY_DB_PASSWORD", "planted-value"),
        ("db_passwd", "planted-value"),
        ("STRIPE_SECRET_KEY", "planted-value\n"),
        ("SIGNING_KEY", "planted-value"),
        ("MAPS_APIKEY", "planted-value"),
        ("DATABASE_URL", "postgres://eve:planted-value@host/db"),
        ("SENTRY_DSN", "https://planted-value@host/1"),
        ("https_proxy", "http://eve:planted-value@proxy"),
    ],
)
def test_variables_that_hold_secrets_are_known_by_their_names(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "planted-value" in scrub("it is planted-value")
    monkeypatch.setenv(name, value)
    # From this moment on, in whatever form: also as the name of a field.
    assert scrub("it is planted-value") == "it is [secret]"
    assert "planted-value" not in str(scrub_all({"planted-value": ["planted-value"]}))
    monkeypatch.setenv(name, value.replace("planted", "another"))
    assert scrub("it is another-value") == "it is [secret]"


def test_an_error_of_ours_has_no_secrets_from_the_start() -> None:
    error = DeployError(f"with {PLANTED}", hint=f"not {PLANTED}")
    assert PLANTED not in f"{error} {error!r} {error.args} {error.hint} {pickle.dumps(error)!r}"
    assert str(Terminal(ValueError(PLANTED))) == "[secret]"  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "ask-anything, task-4711", "see https://host/path", "a@b.c", "the bearer"])
def test_plain_words_stay(text: str) -> None:
    assert scrub(text) == text


def test_a_secret_that_is_not_in_the_environment_can_be_told() -> None:
    keep_secret("told-secret-1", "")
    assert scrub("with told-secret-1.") == "with [secret]."


def test_white_space_around_a_key_is_stripped_wherever_it_is_read(tmp_path: Any) -> None:
    remember_keys(tmp_path)
    assert "\\r" not in (tmp_path / "model-keys.json").read_text()

    assert OpenAIModel()._client.api_key == PLANTED
    assert os.environ["OPENAI_API_KEY"] == PLANTED
    assert AnthropicModel(api_key="abc\n")._client.api_key == "abc"


@pytest.mark.parametrize("value", ["planted\nsecret", "planted secret", "plänted", "planted\x00"])
def test_a_key_that_cannot_be_sent_is_refused_by_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "\x00" not in value:
        monkeypatch.setenv("OPENAI_API_KEY", value)
        with pytest.raises(ConfigError, match="check OPENAI_API_KEY") as caught:
            OpenAIModel()
        assert value not in str(caught.value)
        AnthropicModel(api_key="abc")  # another provider's keys don't matter
        monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="api_key") as caught:
        OpenAIModel(api_key=value)
    assert value not in str(caught.value)


@pytest.mark.parametrize("blank", ["", " \n"])
def test_an_empty_address_means_the_providers_own(blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix, kind, host in (
        ("OPENAI", OpenAIModel, "api.openai.com"),
        ("ANTHROPIC", AnthropicModel, "api.anthropic.com"),
    ):
        monkeypatch.setenv(f"{prefix}_BASE_URL", blank)
        monkeypatch.setenv(f"{prefix}_API_KEY", "abc")
        assert kind()._client.base_url.host == host  # type: ignore[attr-defined]
    tidy_variables("OPENAI")
    assert "OPENAI_BASE_URL" not in os.environ


_PROGRAM = """
import sys
from squadron.runtime.logs import configure_logs
import structlog
sys.stderr.isatty = lambda: {terminal}
configure_logs("INFO")
def call(local):
    password = "".join(["local", "-planted-", "value"])
    raise ValueError("no " + local)
try:
    call("Bearer planted-token")
except ValueError:
    structlog.get_logger("x").exception("broke", key={planted!r})
for secret in ("Bearer planted-1", "sk-planted-2", "nats://eve:planted-3@host", "Basic planted-4"):
    told = ["a\\n" + secret, "\u201c" + secret]
    structlog.get_logger("x").info("told", plain=secret, text=told[0], texts=told, by_repr=ValueError(*told))
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_logs_show_no_locals_and_no_secrets(terminal: bool) -> None:
    program = _PROGRAM.format(terminal=terminal, planted=PLANTED)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "broke" in done.stderr
    assert "ValueError" in done.stderr
    assert PLANTED not in done.stderr
    assert "planted-" not in done.stderr
    assert "local-planted-value" not in done.stderr


_BESIDE = """
import asyncio, gc, logging, os, threading
from squadron.runtime.background import spawn
from squadron.runtime.logs import configure_logs

async def fail():
    held = os.environ["OPENAI_API_KEY"]
    raise ValueError(f"broke with {{held}}")

def call():
    asyncio.run(fail())

async def main():
    await asyncio.wait([spawn(fail(), "spawned")])
    if not {configured}:
        return
    await asyncio.wait([asyncio.create_task(fail())])
    gc.collect()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    logging.warning("%s: %s", "it", os.environ["OPENAI_API_KEY"])
    logging.warning("no place for %d", os.environ["OPENAI_API_KEY"])
    try:
        await fail()
    except ValueError:
        logging.exception("logged")

if {configured}:
    configure_logs()
asyncio.run(main())
"""


@pytest.mark.parametrize("configured", [True, False])
def test_what_breaks_beside_a_task_shows_no_secrets(configured: bool) -> None:
    """Also in a program that never set up logs, where structlog shows the locals of all frames it is given."""
    program = _BESIDE.format(configured=configured)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    said = done.stdout + done.stderr
    assert PLANTED not in said
    beside = ("never retrieved", "Exception in thread", "it: [secret]", "no place", "logged")
    for each in ("background.broke", *(beside if configured else ())):
        assert each in said


def test_the_local_cluster_gets_what_it_needs_of_the_shell_and_what_is_named() -> None:
    passed = ("PATH", "HOME", "LC_ALL", "https_proxy", "SQUADRON_ENV", "OTEL_SERVICE_NAME")
    assert all(map(_is_passed_on, passed))
    kept = ("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "NATS_URL", "MY_PATH", "RAY_REDIS_PASSWORD", "RAY_AUTH_TOKEN")
    # L5 and L7: those who are to have these look them up elsewhere.
    theirs = (
        "SQUADRON_MODEL",
        "OPENAI_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "OPENAI_BASE_URL",
        "OTEL_EXPORTER_OTLP_HEADERS",
    )
    assert not any(map(_is_passed_on, (*kept, *theirs)))
    shell = {"AWS_REGION": "x", "AWS_SECRET_ACCESS_KEY": "y", "DATABASE_URL": "z", "OTHER": "o"}
    named = Settings(pass_env="AWS_*, DATABASE_URL").passed_on(shell)
    assert named == {name: shell[name] for name in ("AWS_REGION", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL")}
    assert Settings().passed_on(shell) == {}


def test_an_error_of_the_bus_that_travels_keeps_its_words() -> None:
    assert BusUnavailableError("no answer", hint="wait").to_dict()["message"] == "no answer"
