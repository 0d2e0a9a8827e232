"""Settings: what is read from where, and what a mistake is answered with."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from squadron.config import VARIABLES, Settings
from squadron.runtime.errors import ConfigError


def test_an_empty_environment_gives_the_embedded_defaults() -> None:
    settings = Settings.load({})

    assert settings.env == "dev"
    assert settings.nats_url is None
    assert settings.ray_address is None
    assert settings.model == ""
    assert settings.heartbeat_s == 5.0
    assert settings.lease_s == 2.5
    assert settings.log_level == "INFO"
    assert settings.home.is_absolute()
    assert settings.home.name == "squadron"


def test_every_field_has_a_variable_and_the_other_way_round() -> None:
    assert set(VARIABLES) == set(Settings.__dataclass_fields__)


def test_values_come_from_the_environment(tmp_path: Path) -> None:
    creds = tmp_path / "user.creds"
    creds.write_text("x")
    settings = Settings.load(
        {
            "SQUADRON_HOME": str(tmp_path),
            "SQUADRON_ENV": "prod",
            "NATS_URL": "nats://a:4222,tls://b:4222",
            "NATS_CREDS": str(creds),
            "RAY_ADDRESS": "10.0.0.1:6379",
            "SQUADRON_MODEL": "openai:gpt",
            "SQUADRON_HEARTBEAT_S": "0.5",
            "SQUADRON_LEASE_S": "7",
            "SQUADRON_LOG_LEVEL": "debug",
            "PATH": "/bin",
        }
    )

    assert settings.home == tmp_path
    assert settings.env == "prod"
    assert settings.nats_url == "nats://a:4222,tls://b:4222"
    assert settings.nats_user_credentials == creds
    assert settings.ray_address == "10.0.0.1:6379"
    assert (settings.heartbeat_s, settings.lease_s) == (0.5, 7.0)
    assert settings.log_level == "DEBUG"


def test_the_limits_of_models_are_a_json_object() -> None:
    limits = {"SQUADRON_MODEL_LIMITS": '{"openai": {"rpm": 500}}'}
    settings = Settings.load(limits)
    assert settings.environ().items() >= limits.items()
    for bad in ("500", "{", "[]"):
        with pytest.raises(ConfigError, match="SQUADRON_MODEL_LIMITS"):
            Settings.load({"SQUADRON_MODEL_LIMITS": bad})


def test_the_limits_of_a_message_are_whole_bytes_in_order() -> None:
    limits = {"SQUADRON_CLAIM_OVER_BYTES": "16384", "SQUADRON_MAX_MESSAGE_BYTES": "1048576"}
    settings = Settings.load(limits)
    assert (settings.claim_over_bytes, settings.max_message_bytes) == (16_384, 1_048_576)
    assert settings.environ().items() >= limits.items()
    for name, bad in (
        ("SQUADRON_CLAIM_OVER_BYTES", "half a megabyte"),
        ("SQUADRON_CLAIM_OVER_BYTES", "16383"),
        ("SQUADRON_MAX_MESSAGE_BYTES", "524287"),
        ("SQUADRON_MAX_MESSAGE_BYTES", str(2**30 + 1)),
    ):
        with pytest.raises(ConfigError, match=name):
            Settings.load({name: bad})


def test_an_override_wins_and_none_means_not_given() -> None:
    env = {"SQUADRON_ENV": "prod", "NATS_URL": "nats://a:4222"}

    assert Settings.load(env, env=None).env == "prod"
    assert Settings.load(env, env="test").env == "test"
    assert Settings.load(env, nats_url="").nats_url is None


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert Settings.load({"NATS_URL": "", "SQUADRON_LEASE_S": ""}) == Settings.load({})


def test_a_relative_home_is_made_absolute_and_a_tilde_expands() -> None:
    assert Settings.load({"SQUADRON_HOME": "here"}).home == Path.cwd() / "here"
    assert Settings.load({"SQUADRON_HOME": "~/there"}).home == Path.home() / "there"


def test_an_unknown_variable_is_named_with_its_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"'SQUADRON_LEASE'.*did you mean SQUADRON_LEASE_S\?"):
        Settings.load({"SQUADRON_LEASE": "3"})


def test_an_unknown_override_is_named_with_its_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"'nats_ulr'.*did you mean nats_url\?"):
        Settings.load({}, nats_ulr="nats://a")


def test_an_unknown_variable_like_no_other_gets_the_list() -> None:
    with pytest.raises(ConfigError, match=r"'SQUADRON_QQQQQQQQQQQQ'.*known are .*SQUADRON_HOME"):
        Settings.load({"SQUADRON_QQQQQQQQQQQQ": "3"})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SQUADRON_ENV", "a.b", r"env: 'a\.b' .*SQUADRON_ENV: use 1 to 32"),
        ("SQUADRON_ENV", "x" * 33, r"env: .*1 to 32"),
        ("SQUADRON_ENV", "dev\n", None),  # stripped, as shells and .env files leave such ends
        ("SQUADRON_LEASE_S", "soon", r"lease_s: 'soon' .*SQUADRON_LEASE_S: give a number of seconds"),
        ("SQUADRON_LEASE_S", "0", r"lease_s: '0\.0'"),
        ("SQUADRON_DEAF_AFTER_S", "2", r"deaf_after_s: '2\.0' .*at least 8"),
        ("SQUADRON_HEARTBEAT_S", "-1", r"heartbeat_s: '-1\.0'"),
        ("SQUADRON_HEARTBEAT_S", "nan", r"heartbeat_s: 'nan'"),
        ("SQUADRON_HEARTBEAT_S", "inf", r"heartbeat_s: 'inf'"),
        ("SQUADRON_METRICS", "9464", r"metrics: '9464' .*SQUADRON_METRICS: give host:port"),
        ("SQUADRON_METRICS", "127.0.0.1:99999", r"metrics: .*host:port"),
        ("SQUADRON_METRICS", "on", r"metrics: 'on'"),
        ("SQUADRON_METRICS", "off", None),
        ("SQUADRON_METRICS", "[::]:9464", None),
        ("SQUADRON_AUDIT_MAX_BYTES", "4000", r"audit_max_bytes: '4000' .*give -1, or 4194304 bytes or more"),
        ("SQUADRON_AUDIT_MAX_BYTES", "0", r"audit_max_bytes: '0'"),
        ("SQUADRON_AUDIT_MAX_BYTES", "-1", None),
        ("SQUADRON_LOG_LEVEL", "loud", r"log_level: 'LOUD' .*DEBUG, INFO"),
        (
            "NATS_CREDS",
            "/nowhere/x.creds",
            r"nats_user_credentials: '/nowhere/x\.creds' .*NATS_CREDS: no such file",
        ),
        ("NATS_URL", "http://a:4222", r"nats_url is not a NATS URL.*NATS_URL"),
        ("NATS_URL", "nats://", r"nats_url"),
        ("NATS_URL", "nats://a:99999", r"nats_url"),
        ("NATS_URL", "nats://a:4222,", r"nats_url"),
        ("NATS_URL", "a:4222", None),
        ("NATS_URL", "nats://[::1]:4222", None),
        ("NATS_URL", "wss://user:pw@host", r"WebSocket is not supported.*NATS_URL to the server's own port"),
        ("NATS_URL", "nats://a,ws://b", r"WebSocket"),
        ("NATS_URL", "nats://eve:a%20b@host", None),
        ("NATS_URL", "nats://eve:a/b@host", r"%2F.*NATS_PASSWORD"),
        ("NATS_URL", "nats://eve:a#b@host", r"%23.*NATS_PASSWORD"),
        ("NATS_USER", "eve", None),  # as the command line `nats` has it, for another server than ours
    ],
)
def test_a_bad_value_names_the_field_and_the_fix(variable: str, value: str, message: str | None) -> None:
    if message is None:
        Settings.load({variable: value})
        return
    with pytest.raises(ConfigError, match=message):
        Settings.load({variable: value})


def test_a_password_in_the_url_reaches_neither_repr_nor_error() -> None:
    settings = Settings.load({"NATS_URL": "nats://me:hunter2@host:4222"})
    assert "hunter2" not in repr(settings)

    with pytest.raises(ConfigError) as caught:
        Settings.load({"NATS_URL": "http://me:hunter2@host:4222"})
    assert "hunter2" not in str(caught.value)


def test_things_that_belong_together_are_checked_together(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    with pytest.raises(ConfigError, match="belong together"):
        Settings.load({"NATS_CERT": str(file)})
    with pytest.raises(ConfigError, match="nats_user and nats_password belong together"):
        Settings.load({"NATS_URL": "nats://a", "NATS_USER": "eve"})
    with pytest.raises(ConfigError, match="both set"):
        Settings.load({"NATS_CREDS": str(file), "NATS_NKEY": str(file)})


def test_settings_survive_pickle_and_are_frozen() -> None:
    settings = Settings.load({}, env="prod")

    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(AttributeError):
        settings.env = "dev"  # type: ignore[misc]


def test_environ_gives_the_same_settings_elsewhere(tmp_path: Path) -> None:
    settings = Settings.load({}, home=tmp_path, env="prod", nats_url="nats://a:4222", lease_s=1.5)

    assert Settings.load(settings.environ()) == settings


def test_it_imports_neither_ray_nor_nats() -> None:
    code = "import sys, squadron.config; assert not {'ray', 'nats'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["prompt", "hb", "status", "attachments", "spawn", "stop", "list"])
def test_environments_are_not_named_like_verbs_of_the_synadia_agent_protocol(name: str) -> None:
    with pytest.raises(ConfigError, match="Synadia"):
        Settings(env=name)
