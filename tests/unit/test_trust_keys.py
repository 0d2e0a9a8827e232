"""Keys and JWTs as nats-server has them; that a real server takes them is in tests/contract."""

from __future__ import annotations

import json
import pickle

import nkeys
import pytest
from nacl.bindings import crypto_scalarmult_ed25519_base_noclamp

from squadron.runtime.errors import ConfigError, UntrustedError
from squadron.runtime.trust.jwts import issue, read
from squadron.runtime.trust.keys import Key, _written, is_signed_by, kind_of


@pytest.mark.parametrize("kind", ["O", "A", "U"])
def test_a_key_is_what_nkeys_makes_of_its_seed(kind) -> None:
    key = Key.create(kind)
    theirs = nkeys.from_seed(bytearray(key.seed))
    assert theirs.public_key.rstrip(b"=").decode() == key.public
    assert kind_of(key.public) == kind
    assert is_signed_by(key.public, b"said", theirs.sign(b"said"))


def test_a_signature_is_for_one_text_by_one_key() -> None:
    key, other = Key.create("U"), Key.create("U")
    signature = key.sign(b"said")
    assert is_signed_by(key.public, b"said", signature)
    assert not is_signed_by(key.public, b"sail", signature)
    assert not is_signed_by(other.public, b"said", signature)
    assert not is_signed_by(key.public, b"said", signature[:-1])
    assert not is_signed_by(key.public[:-1] + ("A" if key.public[-1] != "A" else "B"), b"said", signature)


#: Points of a small order, and such written another way than theirs: by them other libraries than ours take a
#: signature for any text at all.
SMALL = [
    "01" + 31 * "00",
    "ec" + 30 * "ff" + "7f",
    31 * "00" + "80",
    32 * "00",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "01" + 30 * "00" + "80",
    "ee" + 30 * "ff" + "7f",
    "ed" + 30 * "ff" + "7f",
]


@pytest.mark.parametrize("point", SMALL)
def test_a_key_by_which_anything_is_signed_signs_nothing(point: str) -> None:
    public = _written(20 << 3, bytes.fromhex(point))
    assert kind_of(public) == "U"
    for number in range(1, 9):
        scalar = number.to_bytes(32, "little")
        signature = crypto_scalarmult_ed25519_base_noclamp(scalar) + scalar
        assert not is_signed_by(public, b"anything", signature)


def test_a_signature_is_written_in_one_way() -> None:
    key, order = Key.create("U"), 2**252 + 27742317777372353535851937790883648493
    signature = key.sign(b"said")
    again = int.from_bytes(signature[32:], "little") + order
    assert not is_signed_by(key.public, b"said", signature[:32] + again.to_bytes(32, "little"))


@pytest.mark.parametrize("seed", [b"", b"SU", b"SUAAAA", b"\xff" * 58, b"not a seed at all", b"A" * 58])
def test_what_is_no_seed_is_refused_without_telling_it(seed) -> None:
    with pytest.raises(ConfigError) as refused:
        Key(seed)
    assert len(seed) < 6 or seed.decode(errors="replace") not in str(refused.value)


def test_a_key_tells_its_seed_to_nobody() -> None:
    key = Key.create("A")
    assert key.seed.decode() not in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_a_token_says_what_its_issuer_signed() -> None:
    account, user = Key.create("A"), Key.create("U")
    token = issue("user", user.public, account, name="ann", nats={"tags": ["role:agent"]}, expires_at=2e9)
    claims = read(token)
    assert (claims.kind, claims.subject, claims.issuer, claims.name) == (
        "user",
        user.public,
        account.public,
        "ann",
    )
    assert claims.tags == ("role:agent",)
    assert claims.expired(2e9)
    assert not claims.expired(2e9 - 1)


def test_whatever_is_changed_in_a_token_is_found() -> None:
    account, user = Key.create("A"), Key.create("U")
    token = issue("user", user.public, account, name="ann", nats={})
    for at in range(len(token)):
        if token[at] == ".":
            continue
        # The last character of a part may have bits that say nothing: then it says the same.
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        try:
            assert read(changed) == read(token)
            assert at + 1 == len(token) or token[at + 1] == "."
        except UntrustedError:
            pass


@pytest.mark.parametrize(
    "token", ["", ".", "..", "a.b.c", "e30.e30.e30", "\u2603.\u2603.\u2603", "W10.W10.W10", "x" * 300_000]
)
def test_what_is_no_token_is_refused(token) -> None:
    with pytest.raises(UntrustedError):
        read(token)


def test_another_algorithm_is_not_taken() -> None:
    import base64

    def text(value) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    account = Key.create("A")
    claims = {"iss": account.public, "sub": account.public, "iat": 1, "name": "x", "nats": {"type": "account"}}
    with pytest.raises(UntrustedError):
        read(f"{text({'typ': 'JWT', 'alg': 'none'})}.{text(claims)}.")
