"""Which credentials a process has by itself: those that the authority of its home has made for it.

They are files, so whoever connects needs to know nothing of how they were made (`bridge/auth/`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from squadron.config import Settings
from squadron.runtime.errors import ConfigError
from squadron.runtime.secret import Secret

#: Where everybody but the bridge calls JetStream. Not without the `$`: honest agents answer where they are told
#: to, but nowhere that begins with it.
API_PREFIX = "$SQ.API"

#: Name of an environment's trust document, beside its credentials.
TRUST = "trust.json"


def authority_of(home: Path) -> Path:
    """Folder of the authority of a home, and of all that it has made."""
    return home.absolute() / "auth"


def credentials_of(home: Path, environment: str, name: str) -> Path:
    """The `.creds` file of a user of an environment."""
    return authority_of(home) / environment / f"{name}.creds"


def has_authority(settings: Settings) -> bool:
    """Whether this process is to reach the embedded server of a home whose users have credentials."""
    return settings.nats_url is None and (authority_of(settings.home) / "server.conf").is_file()


def as_user(settings: Settings, name: str = "") -> Settings:
    """The settings with the credentials of one of the home's users, where there are such and no others are set.

    Args:
        name: by default `settings.user`; `bridge` is in the account of the streams.

    Raises:
        ConfigError: the home has no such user.
    """
    if settings.nats_user_credentials or settings.nats_nkey_seed_file or not has_authority(settings):
        return settings
    name = name or settings.user
    path = credentials_of(settings.home, settings.env, name)
    if not path.is_file():
        raise ConfigError(
            f"the authority of {settings.home} has no user {name!r} in environment {settings.env!r}",
            hint=f"`squadron up` lets in an environment, `squadron auth add ROLE {name}` a user",
        )
    # Who has credentials signs what it sends; whether others check that is another setting.
    settings = replace(settings, trust=settings.trust or path.with_name(TRUST))
    if name == "bridge":
        return replace(settings, nats_user_credentials=path)
    return with_credentials(settings, path, name)


def with_credentials(settings: Settings, path: Path, name: str) -> Settings:
    """The settings of a user who is not in the account of the streams; no other login is left in them."""
    urls = [each.strip() for each in (settings.nats_url or "").split(",") if each.strip()]
    # Its own login would be tried as well, and is somebody else's.
    bare = [f"{scheme}{sep}{rest.rpartition('@')[2]}" for scheme, sep, rest in (_parts(each) for each in urls)]
    return replace(
        settings,
        nats_url=",".join(bare) or None,
        nats_user="",
        nats_password=Secret(),
        nats_nkey_seed_file=None,
        nats_user_credentials=path,
        nats_api_prefix=API_PREFIX,
        nats_inbox_prefix=f"_INBOX_{name}",
    )


def _parts(url: str) -> tuple[str, str, str]:
    scheme, sep, rest = url.rpartition("://")
    return scheme, sep, rest
