"""The header of a signature, what it is over, and what of it is refused."""

from __future__ import annotations

import hashlib
import json
import re
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squadron.runtime.errors import ConfigError, UntrustedError
from squadron.runtime.trust.agent_sender import MAX_HEADER_BYTES, SENDER_HEADER, AgentSender, time_text
from squadron.runtime.trust.carried import CARRIED_HEADER, Carried, carry
from squadron.runtime.trust.jwts import credentials, issue
from squadron.runtime.trust.keys import Key
from squadron.runtime.trust.principals import Principal, TrustDocument
from squadron.runtime.trust.signature_check import (
    LIVE_WITHIN_S,
    MOST_CARRIERS,
    STORED_WITHIN_S,
    SignatureCheck,
    UnknownUserError,
)
from squadron.runtime.trust.signer import Signer
from tests.trusted import Realm

SUBJECT, DATA, NOW = "agents.test.task.text.echo", b'{"id":"1"}', 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def realm() -> Realm:
    return Realm()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(realm: Realm, clock: Clock) -> SignatureCheck:
    return SignatureCheck(realm.trust, realm.fetch, clock)


@pytest.fixture
def ann(realm: Realm, clock: Clock) -> Signer:
    return realm.signer("ann", "client", clock)


async def _refused(verifier: SignatureCheck, headers: dict[str, str], *, at: float | None = NOW, **how) -> str:
    with pytest.raises(UntrustedError) as refused:
        await verifier.verify(how.pop("subject", SUBJECT), how.pop("data", DATA), headers, at=at, **how)
    return str(refused.value)


def test_the_header_is_compact_json_in_the_order_of_the_scheme(ann: Signer) -> None:
    value = ann.sign(SUBJECT, DATA, None)[SENDER_HEADER]
    assert list(json.loads(value)) == ["v", "account", "user", "name", "sub", "ts", "nonce", "sig"]
    assert " " not in value
    assert len(value) < MAX_HEADER_BYTES
    read = AgentSender.parse(value)
    assert read is not None
    assert read.encode() == value
    assert read.at == NOW


def test_what_is_signed_are_these_lines(ann: Signer) -> None:
    sender = AgentSender.parse(ann.sign(SUBJECT, DATA, None)[SENDER_HEADER])
    assert sender is not None
    digest = hashlib.sha256(DATA).hexdigest()
    assert sender.signed(digest).decode().split("\n") == [
        "AGENT-SENDER-V1",
        sender.account,
        ann.user,
        SUBJECT,
        "2027-01-15T08:00:00.000Z",
        sender.nonce,
        digest,
        "",
    ]


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_a_header_or_refused(text: str) -> None:
    try:
        read = AgentSender.parse(text)
    except UntrustedError:
        return
    assert read is None or AgentSender.parse(read.encode()) == read


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=60),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("v", "account", "user", "name", "sub", "ts", "nonce", "sig")


@given(st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1))
def test_no_field_of_another_type_or_form_is_read(changes: dict[str, object]) -> None:
    good = {
        "v": 1,
        "account": _ACCOUNT,
        "user": _USER,
        "name": "n",
        "sub": SUBJECT,
        "ts": "2027-01-15T08:00:00Z",
        "nonce": "n",
        "sig": "A" * 86,
    }
    try:
        read = AgentSender.parse(json.dumps(good | changes))
    except UntrustedError:
        return
    if read is not None:
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", read.nonce)
        assert not re.search(r"\s", read.subject)
        assert len(read.signature) == 64


_ACCOUNT, _USER = Key.create("A").public, Key.create("U").public


@given(
    st.fixed_dictionaries(
        {
            "v": st.just(1),
            "account": st.sampled_from([_ACCOUNT, _ACCOUNT[:-1], _USER, "$G", ""]),
            "user": st.sampled_from([_USER, _USER.lower(), _USER[:-1] + "=", _ACCOUNT]),
            "name": st.sampled_from(["ann", "", "\u00e4", 'a"b', "a\\u0062", "a\tb"]),
            "sub": st.sampled_from([SUBJECT, "", "a b", "a\nb", "\u2603", 'a"', "a\x7f"]),
            "ts": st.sampled_from(
                ["2027-01-15T08:00:00.25Z", "2027-01-15T08:00:00Z", "2027-13-15T08:00:00Z", "\u0662"]
            ),
            "nonce": st.sampled_from(["n", "", "n" * 65, "n/", "\u00e4"]),
            "sig": st.sampled_from(["A" * 86, "A" * 85 + "B", "-_" * 43, "A" * 85]),
        }
    )
)
def test_a_header_says_the_same_however_its_json_is_laid_out(fields: dict[str, object]) -> None:
    def read(value: str) -> object:
        try:
            return AgentSender.parse(value)
        except UntrustedError as error:
            return str(error)

    backwards = dict(reversed(fields.items()))
    assert read(json.dumps(fields, separators=(",", ":"))) == read(json.dumps(backwards))
    assert read(json.dumps(fields, separators=(",", ":"), ensure_ascii=False)) == read(json.dumps(fields))


@given(st.floats(0, 4e9))
def test_a_time_is_written_in_milliseconds(at: float) -> None:
    exactly = datetime.fromtimestamp(at, UTC)
    written = datetime.fromisoformat(time_text(at))
    assert timedelta(0) <= exactly - written < timedelta(milliseconds=1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time_text(at))


def test_a_header_that_is_too_long_is_refused() -> None:
    with pytest.raises(UntrustedError, match="2048"):
        AgentSender.parse('{"v":1,"name":"' + "x" * 2048 + '"}')


@pytest.mark.parametrize("value", ['{"v":2,"sig":"x"}', '{"v":1}', "{}", '{"v":true,"sig":"x"}'])
def test_another_version_or_none_counts_as_unsigned(value: str) -> None:
    assert AgentSender.parse(value) is None


async def test_who_signed_is_told_with_the_role_of_whoever_vouches(verifier: SignatureCheck, ann: Signer) -> None:
    signed = await verifier.verify(SUBJECT, DATA, ann.sign(SUBJECT, DATA, None), at=NOW)
    assert (signed.by.name, signed.by.role, signed.author) == ("ann", "client", signed.by)
    assert signed.digest == hashlib.sha256(DATA).hexdigest()


async def test_a_signature_is_for_one_subject_and_one_payload(verifier: SignatureCheck, ann: Signer) -> None:
    headers = ann.sign(SUBJECT, DATA, None)
    assert "signed for" in await _refused(verifier, headers, subject=SUBJECT + "s")
    assert "not as it was signed" in await _refused(verifier, headers, data=DATA + b" ")


async def test_what_was_published_as_a_query_is_stored_as_a_task(verifier: SignatureCheck, ann: Signer) -> None:
    headers = ann.sign(SUBJECT.replace("task", "query"), DATA, None)
    assert (await verifier.verify(SUBJECT, DATA, headers, at=NOW)).by.name == "ann"


async def test_a_redelivery_hours_later_is_good_and_one_stored_later_is_not(
    verifier: SignatureCheck, ann: Signer, clock: Clock
) -> None:
    headers = ann.sign(SUBJECT, DATA, None)
    clock.now += 9 * 3600
    for _ in range(2):
        assert (await verifier.verify(SUBJECT, DATA, headers, at=NOW + 1)).by.name == "ann"
    for at in (NOW + STORED_WITHIN_S + 1, NOW - STORED_WITHIN_S - 1, clock.now):
        assert "signed" in await _refused(verifier, headers, at=at)


async def test_what_is_heard_live_is_heard_once_and_soon(
    verifier: SignatureCheck, ann: Signer, clock: Clock
) -> None:
    headers = ann.sign(SUBJECT, DATA, None)
    clock.now += LIVE_WITHIN_S - 1
    await verifier.verify(SUBJECT, DATA, headers, at=None)
    assert "heard before" in await _refused(verifier, headers, at=None)
    late = ann.sign(SUBJECT, DATA, None)
    clock.now += LIVE_WITHIN_S + 1
    assert "s before now" in await _refused(verifier, late, at=None)


async def test_a_forged_message_does_not_take_the_nonce_of_the_true_one(
    verifier: SignatureCheck, ann: Signer
) -> None:
    headers = ann.sign(SUBJECT, DATA, None)
    await _refused(verifier, headers, data=b"forged", at=None)
    assert (await verifier.verify(SUBJECT, DATA, headers, at=None)).by.name == "ann"


async def test_one_that_is_stored_again_is_told_apart_by_its_place(verifier: SignatureCheck, ann: Signer) -> None:
    headers = ann.sign(SUBJECT, DATA, None)
    for _ in range(2):
        assert await verifier.verify(SUBJECT, DATA, headers, at=NOW, seq=7)
    assert "heard before" in await _refused(verifier, headers, at=NOW + 9, seq=8)


async def test_who_nobody_vouches_for_is_refused(realm: Realm, verifier: SignatureCheck, clock: Clock) -> None:
    stranger = Realm()
    signer = stranger.signer("ann", "client", clock)
    assert "knows the credential" in await _refused(verifier, signer.sign(SUBJECT, DATA, None))
    # Its JWT is in the registry, where anybody may write, and says that our account signed it.
    realm.tokens[signer.user] = realm.token("ann", "client", Key.create("U"), by=stranger.account).encode()
    verifier._unknown.clear()
    assert "knows the credential" in await _refused(verifier, signer.sign(SUBJECT, DATA, None))


async def test_the_jwt_of_another_does_not_count(
    realm: Realm, verifier: SignatureCheck, ann: Signer, clock: Clock
) -> None:
    thief = realm.signer("mallory", "agent", clock)
    realm.tokens[thief.user] = ann.token.encode()
    assert "knows the credential" in await _refused(verifier, thief.sign(SUBJECT, DATA, None))


async def test_a_credential_counts_while_it_is_good_when_the_message_was_stored(
    realm: Realm, clock: Clock, verifier: SignatureCheck
) -> None:
    brief = realm.signer("ann", "client", clock, expires_at=NOW + 60)
    headers = brief.sign(SUBJECT, DATA, None)
    clock.now += 7200
    assert await verifier.verify(SUBJECT, DATA, headers, at=NOW)
    assert "expired" in await _refused(verifier, brief.sign(SUBJECT, DATA, None), at=clock.now)


async def test_a_credential_that_was_renewed_is_looked_up_anew(
    realm: Realm, clock: Clock, verifier: SignatureCheck
) -> None:
    brief = realm.signer("ann", "client", clock, expires_at=NOW + 60)
    assert await verifier.verify(SUBJECT, DATA, brief.sign(SUBJECT, DATA, None), at=NOW)
    clock.now += 100
    longer = realm.token("ann", "client", brief._key, expires_at=NOW + 900)
    realm.tokens[brief.user] = longer.encode()
    assert await verifier.verify(SUBJECT, DATA, brief.sign(SUBJECT, DATA, None), at=clock.now)


async def test_a_revoked_credential_counts_for_what_was_stored_before(clock: Clock) -> None:
    realm = Realm()
    signer = realm.signer("ann", "client", clock)
    realm.revoked[signer.user] = time.time()
    verifier = SignatureCheck(realm.trust, realm.fetch, clock)
    since = realm.revoked[signer.user]
    clock.now = since - 10
    assert await verifier.verify(SUBJECT, DATA, signer.sign(SUBJECT, DATA, None), at=since - 10)
    clock.now = since + 10
    assert "revoked" in await _refused(verifier, signer.sign(SUBJECT, DATA, None), at=since + 10)


async def test_a_flood_of_unknown_credentials_is_not_looked_up_each_time(realm: Realm, clock: Clock) -> None:
    asked: list[str] = []

    async def fetch(user: str) -> None:
        asked.append(user)

    verifier, signer = SignatureCheck(realm.trust, fetch, clock), realm.signer("ann", "client", clock)
    for _ in range(5):
        await _refused(verifier, signer.sign(SUBJECT, DATA, None))
    assert asked == [signer.user]


async def test_a_carrier_signs_what_he_carries_too(
    realm: Realm, verifier: SignatureCheck, ann: Signer, clock: Clock
) -> None:
    agent, line = realm.signer("echo", "agent", clock), "agents.test.ordered.echo.c1.text.echo"
    sent = ann.sign(SUBJECT, DATA, None)
    clock.now += 5000
    put = agent.sign(line, DATA, carry(sent, SUBJECT, at=NOW + 1))
    signed = await verifier.verify(line, DATA, put, at=clock.now)
    assert (signed.by.name, signed.author.name) == ("echo", "ann")
    assert [each.subject for _, each in signed.carriers] == [SUBJECT]
    moved = json.loads(put[CARRIED_HEADER])
    for change in ({"at": clock.now}, {"subject": line}, {"redriven": 3}, {"sender": ""}):
        forged = put | {CARRIED_HEADER: json.dumps(moved | change, separators=(",", ":"))}
        assert "not as it was signed" in await _refused(verifier, forged, subject=line, at=clock.now)
    # What the carrier says of it counts, not what he would like: the sender signed it for elsewhere.
    wrong = agent.sign(line, DATA, carry(sent, line, at=NOW))
    assert "signed for" in await _refused(verifier, wrong, subject=line, at=clock.now)


async def test_nothing_is_carried_without_an_end(
    realm: Realm, verifier: SignatureCheck, ann: Signer, clock: Clock
) -> None:
    agent = realm.signer("echo", "agent", clock)
    headers = ann.sign(SUBJECT, DATA, None)
    for _ in range(MOST_CARRIERS):
        headers = agent.sign(SUBJECT, DATA, carry(headers, SUBJECT, at=NOW))
    assert len((await verifier.verify(SUBJECT, DATA, headers, at=NOW)).carriers) == MOST_CARRIERS
    headers = agent.sign(SUBJECT, DATA, carry(headers, SUBJECT, at=NOW))
    assert "more than" in await _refused(verifier, headers)


@given(json_values)
def test_no_other_json_is_carried(value: object) -> None:
    with pytest.raises(UntrustedError):
        Carried.parse(json.dumps(value))


@pytest.mark.parametrize(
    ("id", "covered"),
    [
        *(("ann", True), ("ann-0a1b2c3d", True), ("ann-x", False), ("anna", False), ("an", False)),
        *(("ann-0a1b2c3d-asks", False), ("ann-", False), ("ann-0A1B2C3D", False), ("ann-beef", False)),
    ],
)
def test_which_ids_a_principal_may_have(id: str, covered: bool) -> None:
    assert Principal("ann", "agent", _USER).covers(id) is covered


async def test_a_principal_can_not_be_called_like_a_process_of_another(realm: Realm, clock: Clock) -> None:
    verifier, signer = (
        SignatureCheck(realm.trust, realm.fetch, clock),
        realm.signer("ann-0a1b2c3d", "agent", clock),
    )
    with pytest.raises(UnknownUserError):
        await verifier.verify(SUBJECT, DATA, signer.sign(SUBJECT, DATA, None), at=NOW)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"account": "A"}, "account"),
        ({"account": None}, "account"),
        ({"roles": {"boss": [_ACCOUNT]}}, "boss"),
        ({"roles": {"agent": ["U"]}}, "roles.agent"),
        ({"roles": {"agent": [_ACCOUNT], "client": [_ACCOUNT]}}, "two roles"),
        ({"roles": 1}, "trust document"),
        ({"users": {_USER: {"name": "x"}}}, "role"),
        ({"revoked": {"U": "then"}}, "trust document"),
    ],
)
def test_a_trust_document_names_what_is_wrong(realm: Realm, change: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TrustDocument.parse(json.dumps(json.loads(realm.document()) | change).encode())


async def test_a_client_without_a_jwt_may_be_listed_by_its_key(realm: Realm, clock: Clock) -> None:
    signer = Realm().signer("whoever", "client", clock)
    said = json.loads(realm.document()) | {"users": {signer.user: {"name": "shell", "role": "foreign"}}}
    sender = AgentSender(realm.account.public, signer.user, "", SUBJECT, "2027-01-15T08:00:00Z", "n")
    sig = signer._key.sign(sender.signed(hashlib.sha256(DATA).hexdigest()))
    verifier = SignatureCheck(TrustDocument.parse(json.dumps(said).encode()), realm.fetch, clock)
    whole = AgentSender(*[getattr(sender, name) for name in sender.__slots__[:-2]], sig)
    signed = await verifier.verify(SUBJECT, DATA, {SENDER_HEADER: whole.encode()}, at=NOW)
    assert (signed.by.name, signed.by.role) == ("shell", "foreign")


def test_credentials_are_read_from_a_file(realm: Realm, tmp_path) -> None:
    path = realm.write(tmp_path, "ann", "client")
    signer = Signer.load(path)
    assert (signer.name, signer.says.account) == ("ann", realm.account.public)
    other = Key.create("U")
    path.write_bytes(credentials(signer.token, other))
    for content in (path.read_bytes(), b"", b"\xff\xfe", b"-----BEGIN NATS USER JWT-----\nx\n------END NATS"):
        path.write_bytes(content)
        with pytest.raises(ConfigError):
            Signer.load(path)


def test_users_of_the_streams_account_are_the_bridge_and_nobody_else(realm: Realm, clock: Clock) -> None:
    streams = Key.create("A")
    document = TrustDocument.parse(json.dumps(json.loads(realm.document()) | {"streams": streams.public}).encode())
    for role, key in (("bridge", streams), ("client", realm.account)):
        other = streams if key is realm.account else realm.account
        user = Key.create("U").public
        for account, counts in ((key, True), (other, False)):
            token = issue("user", user, realm.keys[role], name="x", nats={"issuer_account": account.public})
            if counts:
                assert document.principal(token).role == role
                continue
            with pytest.raises(UntrustedError, match="nobody who is trusted"):
                document.principal(token)
