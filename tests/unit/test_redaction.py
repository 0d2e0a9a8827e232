"""What is struck out before the trail is stored, and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from squadron.bridge.audit.redaction import Redaction
from squadron.runtime.errors import ConfigError
from squadron.runtime.redact import STRUCK

SECRET = ("password", "DB_PASSWORD", "apiKey", "Authorization", "set-cookie", "token", "refreshToken")
PERSONAL = ("eMail", "phoneNumber", "iban", "cardNumber", "credit_card", "cvv", "dateOfBirth", "ssn")


def redacted(value: Any, rules: str = "", *, ascii: bool = True) -> Any:
    """As it comes from the wire."""
    return Redaction(rules).of(value, json.dumps(value, ensure_ascii=ascii))


@pytest.mark.parametrize(
    "name",
    [
        *[
            "password",
            "DB_PASSWORD",
            "apiKey",
            "Authorization",
            "set-cookie",
            "token",
            "refreshToken",
            "eMail",
            "phoneNumber",
            "iban",
        ],
        *["X-Api-Key", "private-key", "x-access-key", "api key", "card number", "Date of birth", "date-of-birth"],
        *["e-mail", "birth date", "Credit-Card", "social security no"],
    ],
)
def test_a_field_is_struck_out_by_its_name_wherever_it_is(name: str) -> None:
    assert redacted([{"a": {name: {"deep": 1}}}]) == [{"a": {name: STRUCK}}]
    assert redacted({name: 42, "none": None}) == {name: STRUCK, "none": None}


@pytest.mark.parametrize(
    "name", ["tokens", "max_tokens", "inputTokens", "output_tokens", "input-tokens", "max tokens", "text", "city"]
)
def test_counts_and_plain_fields_stay(name: str) -> None:
    assert redacted({name: 7}) == {name: 7}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("write to jane.doe+x@mail.example.org!", "write to [email]!"),
        ("DE89370400440532013000 and GB29 NWBK 6016 1331 9268 19.", "[iban] and [iban]."),
        ("card 4111 1111 1111 1111, 4111-1111-1111-1111", "card [card], [card]"),
        ("order 4111 1111 1111 1112", "order 4111 1111 1111 1112"),
        ("4111 1111 1111 1111 12/27, 4111-1111-1111-1111-123", "[card] 12/27, [card]-123"),
        ("12 4111111111111111 12 27, order 4000 4111 1111 1111 1111", "12 [card] 12 27, order 4000 [card]"),
        ("378282246310005 or 7 3782 822463 10005 2", "[card] or 7 [card] 2"),
        ("411 111 11 11 11 1111", "[card]"),
        ("2019 2020 2021 2022 2023 2024 2025 2026 2027", "2019 2020 2021 2022 2023 2024 2025 2026 2027"),
        ("Bearer abcdefgh sk-abcdefgh12345", "Bearer [secret] [secret]"),
        ("nats://user:pa55word@host:4222", "nats://[secret]@host:4222"),
        ("2026-11-28T17:00:00 at 1795887416202 ms", "2026-11-28T17:00:00 at 1795887416202 ms"),
    ],
)
def test_a_text_is_searched_by_pattern(text: str, wanted: str) -> None:
    assert redacted({"said": [text]}) == {"said": [wanted]}
    assert Redaction().text(text) == wanted


def test_what_hides_behind_an_escape_or_in_a_name_is_found() -> None:
    raw = '{"jane\\u0040example.org": "to joe\\u0040example.org"}'
    assert Redaction().of(json.loads(raw), raw) == {"[email]": "to [email]"}


SHAPES = {
    "sk-proj-abcdefgh12345": STRUCK,
    "Bearer abcdefgh": f"Bearer {STRUCK}",
    "Basic YTpiYzpk": f"Basic {STRUCK}",
    "SU" + 56 * "A": STRUCK,
    "nats://eve:pa55word@host": f"nats://{STRUCK}@host",
    "4111 1111 1111 1111": "[card]",
    "DE89370400440532013000": "[iban]",
}


@pytest.mark.parametrize("found", SHAPES)
@pytest.mark.parametrize("before", ["key:\n", "a\tb\t", "\r\n", "“", "\N{NO-BREAK SPACE}", "\\", "\x7f"])
def test_what_stands_after_an_escape_is_found_also_in_json_within_json(found: str, before: str) -> None:
    text, wanted = before + found, before + SHAPES[found]
    assert redacted({"x": text}) == redacted({"x": text}, ascii=False) == {"x": wanted}
    arguments = redacted({"arguments": json.dumps({"x": text})}, ascii=False)["arguments"]
    assert json.loads(arguments) == {"x": wanted}
    assert json.loads(Redaction().text(json.dumps([text]))) == [wanted]


def test_an_address_is_struck_out_after_an_escape_which_stays_one() -> None:
    inner = redacted({"arguments": json.dumps({"to": "jane:\njane@example.org"})})["arguments"]
    assert json.loads(inner) == {"to": "jane:\n[email]"}


def test_slashes_that_are_escaped_hide_no_address() -> None:
    raw = '{"x": "nats:\\/\\/eve:pa55word@host"}'
    assert Redaction().of(json.loads(raw), raw) == {"x": f"nats://{STRUCK}@host"}


def test_own_rules_come_on_top() -> None:
    rules = '{"keys": ["^patient"], "patterns": {"case": "C-[0-9]{6}"}}'
    value = {"patientName": "Doe", "inpatient": "yes", "text": "C-123456, joe@example.org", "password": "x"}
    wanted = {"patientName": STRUCK, "inpatient": "yes", "text": "[case], [email]", "password": STRUCK}
    assert redacted(value, rules) == wanted


def test_a_secret_of_the_archivist_itself_is_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "pl4nted-value")
    assert redacted({"text": "it is pl4nted-value"}) == {"text": f"it is {STRUCK}"}
    monkeypatch.setenv("OTHER_API_KEY", 'pä"nted-välue')
    for ascii in (True, False):
        assert redacted({"text": 'it is pä"nted-välue'}, ascii=ascii) == {"text": f"it is {STRUCK}"}


@pytest.mark.parametrize(
    "rules",
    ["[]", "no JSON", '{"keys": "password"}', '{"patterns": {"a": "("}}', '{"keys": ["("]}', '{"other": 1}'],
)
def test_rules_that_can_not_be_meant_are_refused(rules: str) -> None:
    with pytest.raises(ConfigError, match="audit_redact"):
        Redaction(rules)
