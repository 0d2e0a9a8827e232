"""Which credentials a process has by itself: those that the authority of its home has made for it.

They are files, so whoever connects needs to know nothing of how they were made (`bridge/auth/`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from squadron.config import API_PREFIX as API_PREFIX
from squadron.config import Settings
from squadron.runtime.errors import ConfigError
from squadron.runtime.secret import Secret

#: Where JetStream is called in the account that has the streams.
JS_API = "$JS.API"

#: The setting `nats_own` of the bridge, which makes the streams of agents.
OF_ALL = "*"

#: So begin the inboxes of whoever has a name: others can't hear its answers.
_INBOX_OF = "_INBOX_"

#: Name of an environment's trust document, beside its credentials.
TRUST = "trust.json"


def inbox_prefix(name: str) -> str:
    """The setting `nats_inbox_prefix` of whoever has this name: others can't hear its answers."""
    return f"{_INBOX_OF}{name}"


def user_of(settings: Settings) -> str:
    """The name of the NATS user that a process is, where users are known by their names; else empty."""
    prefix = settings.nats_inbox_prefix
    return prefix.removeprefix(_INBOX_OF) if prefix.startswith(_INBOX_OF) else ""


def authority_of(home: Path) -> Path:
    """Folder of the authority of a home, and of all that it has made."""
    return home.absolute() / "auth"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files in PEM: the CAs that are believed, and an own certificate with its key; None is none of that."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.ca or self.cert)

    def environ(self) -> dict[str, str]:
        """The variables that name them."""
        files = {"NATS_CA": self.ca, "NATS_CERT": self.cert, "NATS_KEY": self.key}
        return {name: str(path) for name, path in files.items() if path is not None}


def tls_folder(home: Path) -> Path:
    """Folder of a home's CA, and of the certificates that it has signed (`squadron auth tls`)."""
    return authority_of(home) / "tls"


def embedded_tls(home: Path) -> tuple[TlsFiles, TlsFiles]:
    """What the embedded server of a home shows, and what its users take for it; both are empty without TLS.

    There is TLS if the server has a certificate, and it wants one of its users if there is one for them.
    """
    folder = tls_folder(home)
    cert, users = folder / "embedded.pem", folder / "embedded-user.pem"
    if not cert.is_file():
        return TlsFiles(), TlsFiles()
    ca = folder / "ca.pem"
    if not users.is_file():
        return TlsFiles(None, cert, cert.with_suffix(".key")), TlsFiles(ca)
    return TlsFiles(ca, cert, cert.with_suffix(".key")), TlsFiles(ca, users, users.with_suffix(".key"))


def tls_files(settings: Settings) -> TlsFiles:
    """What this process takes for TLS to the server of its settings."""
    if settings.nats_url is None:
        return embedded_tls(settings.home)[1]
    return TlsFiles(settings.nats_tls_ca, settings.nats_tls_cert, settings.nats_tls_key)


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
        return replace(settings, nats_user_credentials=path, nats_own=OF_ALL)
    return with_credentials(settings, path, name)


def as_bridge(settings: Settings) -> Settings:
    """The settings of the bridge: its credentials, and whether it makes streams for agents.

    Raises:
        ConfigError: the home has no such user.
    """
    settings = as_user(settings, "bridge")
    # With keys for them its replicas have credentials of their own.
    return settings if settings.agent_keys is None else replace(settings, nats_own=OF_ALL)


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
