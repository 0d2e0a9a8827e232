"""10,000 signatures that are forged, replayed, truncated or mixed up: none is accepted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from squadron.runtime.errors import UntrustedError
from squadron.runtime.trust.agent_sender import SENDER_HEADER, AgentSender, text_of, time_text
from squadron.runtime.trust.carried import CARRIED_HEADER, Carried, carry, digest_of_carried
from squadron.runtime.trust.principals import Role
from squadron.runtime.trust.signature_check import STORED_WITHIN_S, SignatureCheck
from squadron.runtime.trust.signer import Signer
from tests.trusted import Realm

NOW, SEED, MANY = 1_800_000_000.0, 20_261_128, 10_000


@dataclass(frozen=True)
class Sent:
    """A message as a server has it, and what is true of it."""

    subject: str
    data: bytes
    headers: dict[str, str]
    at: float
    author: str


class Forger:
    """Has heard everything, has a credential of another account, and none of ours."""

    def __init__(self, rng: random.Random, heard: list[Sent], own: Signer, token_holder: Signer) -> None:
        self.rng, self.heard, self.own, self.insider = rng, heard, own, token_holder

    def forge(self) -> tuple[str, Sent]:
        base = self.rng.choice(self.heard)
        trick = self.rng.choice(TRICKS)
        return trick.__name__, trick(self, base)

    def header(self, of: Sent, **changes: object) -> dict[str, str]:
        fields = json.loads(of.headers[SENDER_HEADER]) | changes
        return of.headers | {SENDER_HEADER: json.dumps(fields, separators=(",", ":"))}


def elsewhere(f: Forger, it: Sent) -> Sent:
    others = [it.subject + "x", it.subject[:-1], it.subject.replace("test", "prod")]
    return replace(it, subject=f.rng.choice(others))


def other_payload(f: Forger, it: Sent) -> Sent:
    cut = f.rng.randrange(len(it.data))
    return replace(it, data=f.rng.choice([it.data[:cut], it.data + b" ", bytes([it.data[0] ^ 1]) + it.data[1:]]))


def mixed_up(f: Forger, it: Sent) -> Sent:
    other = f.rng.choice([each for each in f.heard if each.data != it.data])
    return replace(it, headers=other.headers)


def truncated(f: Forger, it: Sent) -> Sent:
    value = it.headers[SENDER_HEADER]
    return replace(it, headers=it.headers | {SENDER_HEADER: value[: f.rng.randrange(len(value))]})


def flipped(f: Forger, it: Sent) -> Sent:
    sender = AgentSender.parse(it.headers[SENDER_HEADER])
    assert sender is not None
    at = f.rng.randrange(64)
    raw = bytearray(sender.signature)
    raw[at] ^= 1 << f.rng.randrange(8)
    return replace(it, headers=f.header(it, sig=text_of(bytes(raw))))


def garbled(f: Forger, it: Sent) -> Sent:
    text = it.headers[SENDER_HEADER]
    # The name alone is nobody's word, and not signed.
    name = range(text.index('"name"'), text.index('"sub"'))
    value, at = list(text), f.rng.choice([at for at in range(len(text)) if at not in name])
    letter = f.rng.choice([chr(code) for code in range(32, 127) if chr(code) != value[at]])
    value[at] = letter
    return replace(it, headers=it.headers | {SENDER_HEADER: "".join(value)})


def other_field(f: Forger, it: Sent) -> Sent:
    name, value = f.rng.choice(
        [
            ("ts", time_text(it.at + f.rng.randrange(1, 200))),
            ("nonce", "n" * f.rng.randrange(1, 64)),
            ("user", f.insider.user if it.author != f.insider.name else f.own.user),
            ("user", f.own.user),
            ("account", f.own.says.account),
            ("v", f.rng.choice([0, 2, "1", None, 1.0, True])),
            ("sub", it.subject + ".p9"),
            ("sig", ""),
            ("sig", 7),
        ]
    )
    return replace(it, headers=f.header(it, **{name: value}))


def stored_again_later(f: Forger, it: Sent) -> Sent:
    return replace(it, at=it.at + STORED_WITHIN_S + f.rng.randrange(1, 10**6))


def by_a_stranger(f: Forger, it: Sent) -> Sent:
    headers = f.own.sign(it.subject, it.data, None)
    changes = f.rng.choice([{}, {"name": "ann"}, {"account": json.loads(it.headers[SENDER_HEADER])["account"]}])
    return replace(it, headers=f.header(replace(it, headers=headers), **changes))


def unsigned(f: Forger, it: Sent) -> Sent:
    return replace(it, headers=f.rng.choice([{}, {SENDER_HEADER: ""}, {SENDER_HEADER.lower(): "x"}]))


def carried_by_nobody(f: Forger, it: Sent) -> Sent:
    more = carry(it.headers, it.subject, at=it.at)
    return replace(it, headers=it.headers | more)


def carried_otherwise(f: Forger, it: Sent) -> Sent:
    with_carrier = [each for each in f.heard if CARRIED_HEADER in each.headers]
    it = f.rng.choice(with_carrier)
    how = Carried.parse(it.headers[CARRIED_HEADER])
    other = f.rng.choice([each for each in f.heard if each.data != it.data])
    changed = f.rng.choice(
        [
            replace(how, at=how.at + 1000),
            replace(how, redriven=how.redriven + 1),
            replace(how, subject=it.subject),
            replace(how, sender=other.headers[SENDER_HEADER]),
        ]
    ).encode()
    nonce = json.loads(it.headers[SENDER_HEADER])["nonce"][:20] + digest_of_carried(changed)
    return replace(it, headers=f.header(it, nonce=nonce) | {CARRIED_HEADER: changed})


TRICKS: list[Callable[[Forger, Sent], Sent]] = [
    *(elsewhere, other_payload, mixed_up, truncated, flipped, garbled, other_field, stored_again_later),
    *(by_a_stranger, unsigned, carried_by_nobody, carried_otherwise),
]


def _heard(rng: random.Random, signers: list[Signer], now: Callable[[], float]) -> list[Sent]:
    kinds = (
        "task.text.echo",
        "lite.ann-asks.1",
        "registry.card.echo",
        "bridge.deploy",
        "lite.cancel.1",
        "event.a.b",
    )
    heard = []
    for number in range(60):
        signer, subject = rng.choice(signers), f"agents.test.{rng.choice(kinds)}"
        data = json.dumps({"id": number, "source": {"id": signer.name}}).encode()
        headers = signer.sign(subject, data, {"Nats-Msg-Id": str(number)})
        if number % 3 == 0:
            line = f"agents.test.ordered.echo.c.{number}.x"
            headers, subject = signer.sign(line, data, carry(headers, subject, at=now())), line
        heard.append(Sent(subject, data, headers, now(), signer.name))
    return heard


async def test_none_of_ten_thousand_forged_signatures_is_accepted() -> None:
    rng, realm = random.Random(SEED), Realm()

    def now() -> float:
        return NOW

    people: dict[str, Role] = {"ann": "client", "echo": "agent", "boss": "operator", "bridge": "bridge"}
    signers = [realm.signer(name, role, now) for name, role in people.items()]
    heard = _heard(rng, signers, now)
    thief = Realm()
    own = thief.signer("ann", "operator", now)
    # Its JWT stands in the registry, too, where anybody may write.
    realm.tokens[own.user] = thief.tokens[own.user]
    verifier = SignatureCheck(realm.trust, realm.fetch, now)
    for it in heard:
        signed = await verifier.verify(it.subject, it.data, it.headers, at=it.at)
        assert signed.author.name == it.author
    forger = Forger(rng, heard, own, signers[1])
    tried: dict[str, int] = {}
    for _ in range(MANY):
        trick, it = forger.forge()
        tried[trick] = tried.get(trick, 0) + 1
        try:
            signed = verifier.check(it.subject, it.data, it.headers, at=it.at)
        except UntrustedError:
            continue
        raise AssertionError(f"{trick}: {it} was taken as by {signed.author.name}")
    assert len(tried) == len(TRICKS)
    # And what is true still is.
    for it in heard:
        assert verifier.check(it.subject, it.data, it.headers, at=it.at).author.name == it.author


async def test_what_is_heard_live_is_taken_once_however_often_it_comes() -> None:
    rng, realm = random.Random(SEED), Realm()
    signer = realm.signer("ann", "client", lambda: NOW)
    verifier = SignatureCheck(realm.trust, realm.fetch, lambda: NOW)
    sent = [(f"agents.test.bridge.{n}", b"{}") for n in range(200)]
    messages = [(*each, signer.sign(*each, None)) for each in sent]
    taken = 0
    await verifier.learn(signer.user)
    for _ in range(2_000):
        subject, data, headers = rng.choice(messages)
        try:
            verifier.check(subject, data, headers, at=None)
            taken += 1
        except UntrustedError:
            continue
    assert taken <= len(sent)
