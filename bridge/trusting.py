"""Who a process is, and whom it believes, by its settings: over any ports."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from squadron.config import Settings
from squadron.runtime.errors import ConfigError, UntrustedError
from squadron.runtime.logs import get_logger
from squadron.runtime.ports.journal import Journal
from squadron.runtime.trust.guard import Guard
from squadron.runtime.trust.principals import Principal, TrustDocument
from squadron.runtime.trust.signature_check import SignatureCheck
from squadron.runtime.trust.signer import Signer
from squadron.runtime.wire.envelope import AgentIdentity
from squadron.runtime.wire.policy import NO_POLICY, Policy
from squadron.runtime.wire.subjects import Subjects

#: How long a JWT can be looked up past its end, in seconds: as long as a dead letter that it signed, and a day.
KEY_KEPT_S = 91 * 24 * 3600.0

_log = get_logger("squadron.trust")


@dataclass(frozen=True, slots=True)
class Trusting:
    """What one process signs with and checks by. With `signer` None it signs nothing, without a `document` it
    checks nothing. `policy` says who may ask what."""

    signer: Signer | None = None
    me: Principal | None = None
    document: TrustDocument | None = None
    policy: Policy = NO_POLICY

    @classmethod
    def of(cls, settings: Settings, now: Callable[[], float]) -> Trusting:
        """Read what the settings name.

        Raises:
            ConfigError: a file is not what it should be, or nobody who is trusted vouches for this process.
        """
        if settings.trust is None:
            if settings.verify_modes.strictest != "off":
                said = f"verify is {settings.verify!r}, and there is nobody to trust"
                raise ConfigError(said, hint="set SQUADRON_TRUST to a trust document, or `squadron auth init`")
            return cls()
        document = TrustDocument.load(settings.trust)
        policy = NO_POLICY if settings.policy is None else Policy.load(settings.policy)
        if settings.nats_user_credentials is None:
            return cls(document=document, policy=policy)
        signer = Signer.load(settings.nats_user_credentials, now)
        try:
            me = document.principal(signer.token)
        except UntrustedError as error:
            hint = "take the trust document of the environment that the credentials are for"
            raise ConfigError(f"NATS_CREDS and SQUADRON_TRUST don't fit: {error}", hint=hint) from None
        if me.role == "agent" and not any(tag.startswith("serves:") for tag in me.tags):
            # The server leaves out the subjects whose tag is not there, and says so to nobody but its own log.
            hint = "where the server is at home: squadron auth rotate agent; then take the new credentials there"
            _log.warning("trust.old_credentials", name=me.name, lost="urgent tasks", hint=hint)
        return cls(signer, me, document, policy)

    def named(self, identity: AgentIdentity) -> AgentIdentity:
        """The identity of a process as its principal may have it."""
        if self.me is None or self.me.covers(identity.id):
            return identity
        return identity.model_copy(update={"id": f"{self.me.name}-{uuid.uuid4().hex[:8]}"})

    def guard(
        self, settings: Settings, records: Journal, subjects: Subjects, now: Callable[[], float]
    ) -> Guard | None:
        """What checks messages here; None if nothing is checked."""
        modes = settings.verify_modes
        if self.document is None or modes.strictest == "off":
            return None

        async def fetch(user: str) -> bytes | None:
            entry = await records.last(subjects.record("key", user))
            return None if entry is None else entry.data

        me = "" if self.me is None else self.me.name
        changed = _Watched(settings.trust, self.document).changed if settings.trust else lambda: None
        return Guard(SignatureCheck(self.document, fetch, now, changed), modes, me)

    async def publish_key(self, records: Journal, subjects: Subjects, now: float) -> None:
        """Let others look up who signs here: its chain is checked by whoever reads it.

        Raises:
            BusUnavailableError: not acknowledged in time.
        """
        if self.signer is None:
            return
        key, token = subjects.record("key", self.signer.user), self.signer.token.encode()
        stored = await records.last(key)
        if stored is None or stored.data != token:
            until = self.signer.says.expires_at
            await records.append(key, token, ttl_s=until - now + KEY_KEPT_S if until else None)


class _Watched:
    """A trust document in a file that may change."""

    def __init__(self, path: Path, document: TrustDocument) -> None:
        self._path, self._last, self._seen = path, document, _stamp(path)

    def changed(self) -> TrustDocument | None:
        """What the file says now, if that is something else; one that says nothing of use changes nothing."""
        if (stamp := _stamp(self._path)) == self._seen:
            return None
        self._seen = stamp
        try:
            document = TrustDocument.load(self._path)
        except ConfigError as error:
            _log.warning("trust.not_read", path=str(self._path), error=str(error))
            return None
        if document == self._last:
            return None
        self._last = document
        return document


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_ino
