"""What a process is told of its own credentials when it reads them."""

from __future__ import annotations

import time
from pathlib import Path

from structlog.testing import capture_logs

from squadron.bridge.auth.authority import Authority
from squadron.bridge.jetstream.link.at_home import TRUST, authority_of
from squadron.bridge.trusting import Trusting
from squadron.config import Settings
from tests.trusted import Realm


def test_credentials_of_an_agent_that_were_made_before_they_said_what_it_serves_tell_what_to_do(
    tmp_path: Path,
) -> None:
    realm, trust = Realm(), tmp_path / "trust.json"
    trust.write_bytes(realm.document())
    old = realm.write(tmp_path, "clerk", "agent")
    with capture_logs() as told:
        Trusting.of(Settings(trust=trust, nats_user_credentials=old), time.time)
    (warning,) = told
    assert "squadron auth rotate agent" in warning["hint"]
    assert warning["name"] == "clerk"

    _, new = Authority.create(tmp_path, "dev").add("dev", "agent", "clerk")
    with capture_logs() as told:
        document = authority_of(tmp_path) / "dev" / TRUST
        Trusting.of(Settings(trust=document, nats_user_credentials=new), time.time)
    assert told == []
