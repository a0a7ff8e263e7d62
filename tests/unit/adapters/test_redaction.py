"""Secrets and personal data leave a text, and nothing else does."""

import string
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.redaction import build_redactor, redact, redact_json, redact_secrets

PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\n"
    + "\n".join(["MIIEpAIBAAKCAQEAx7Qm" + letter * 44 for letter in "abcd"])
    + "\n-----END RSA PRIVATE KEY-----"
)

SECRETS = {
    "el_Zk3vQ0qkXo2WcJq1T9mN8bV7aLs6Dd5Ff4Gg3Hh2Jj1": "[API_KEY]",
    "sk-proj-abcdefghij0123456789ABCDEFGHIJ": "[API_KEY]",
    "sk-ant-api03-abcdefghij0123456789_ABCDEF": "[API_KEY]",
    "AKIAIOSFODNN7EXAMPLE": "[API_KEY]",
    "ghp_0123456789abcdefghijABCDEFGHIJ012345": "[API_KEY]",
    "github_pat_11ABCDEFG0abcdefghijklmnop": "[API_KEY]",
    "xoxb-123456789012-abcdefGHIJKL": "[API_KEY]",
    "AIzaSyA0123456789abcdefghijklmnopqrstuvw": "[API_KEY]",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N": "[TOKEN]",
    PEM: "[PRIVATE_KEY]",
}

PERSONAL = {
    "ada.lovelace+notes@example.co.uk": "[EMAIL]",
    "müller@münchen.example": "[EMAIL]",
    "4111 1111 1111 1111": "[CARD]",
    "5555555555554444": "[CARD]",
    "3782-822463-10005": "[CARD]",
    "DE89 3704 0044 0532 0130 00": "[IBAN]",
    "GB82WEST12345698765432": "[IBAN]",
    "+49 30 901820": "[PHONE]",
    "(212) 736-5000": "[PHONE]",
    "+1 212-736-5000": "[PHONE]",
}

HARMLESS = [
    "The lighthouse at Kell was built in 1871 by Odile Brandt, 12 Harbour Street.",
    "Version 1.2.3 of 2026-11-21 08:30:09 took 1234567 rows, 99.5 % of 4111111111111112.",
    "Password: see the manual. The token: a word. Bearer responsibilities-of-command.",
    "password = ${DB_PASSWORD} and api_key=<your-key>",
    "Order 20261121 has 1000000 pieces; pi is 3.14159265358979.",
    "The secret of comedy: timing. A token of thanks: flowers.",
    "PRIVATE KEY",
    "How do I turn BEGIN PRIVATE KEY-----, without its beginning, into a file?",
    "",
]


@pytest.mark.parametrize(("planted", "mark"), [*SECRETS.items(), *PERSONAL.items()])
def test_each_kind_leaves_its_mark(planted: str, mark: str) -> None:
    assert redact(f"Here: {planted}, and so on.") == f"Here: {mark}, and so on."


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("DB_PASSWORD=hunter2!", "DB_PASSWORD=[PASSWORD]"),
        ('{"password": "correct horse battery"}', '{"password": "[PASSWORD]"}'),
        (r"{\"api_key\": \"a1b2c3d4e5\"}", r"{\"api_key\": \"[SECRET]\"}"),
        ("aws_secret_access_key: wJalrXUtnFEMI7MDENG", "aws_secret_access_key: [SECRET]"),
        ("postgresql://app:s3cr3t@db:5432/x", "postgresql://app:[PASSWORD]@db:5432/x"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic [TOKEN]"),
        ("-H 'authorization: Bearer abcdef'", "-H 'authorization: Bearer [TOKEN]'"),
        ("bearer 0123456789abcdef", "bearer [TOKEN]"),
        ("Telefon: 030 1234567.", "Telefon: [PHONE]."),
        ("Call (212) 736-5000 24 hours a day.", "Call [PHONE] 24 hours a day."),
        ("+1 212 736 5000 0 and +44 20 7946 0958", "[PHONE] 0 and [PHONE]"),
        ("(212) 736-5000 7 (212) 736-5000 7", "[PHONE] 7 [PHONE] 7"),
        ("card 12 4111 1111 1111 1111 12/27", "card 12 [CARD] 12/27"),
        ("to DE89 3704 0044 0532 0130 00 BY NOON", "to [IBAN] BY NOON"),
    ],
)
def test_only_the_secret_part_is_replaced(text: str, redacted: str) -> None:
    assert redact(text) == redacted


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays_byte_for_byte(text: str) -> None:
    assert redact(text) == text


def test_a_private_key_that_is_cut_in_two_leaves_neither_half() -> None:
    middle = PEM.index("bbb")
    for half in (PEM[:middle], PEM[middle:]):
        left = redact(f"Text before.\n{half}\nText after.")
        assert "bbb" not in left
        assert "aaa" not in left
        assert left.startswith("Text before.")
        assert left.endswith("Text after.")


def test_documents_keep_their_names_and_numbers_and_lose_their_secrets() -> None:
    text = "Write to odile@kell.example or +49 30 901820; password=hunter2!"

    assert redact_secrets(text) == (
        "Write to odile@kell.example or +49 30 901820; password=[PASSWORD]"
    )


def test_json_is_redacted_at_any_depth() -> None:
    message = {"content": [{"type": "text", "text": "a@b.example"}, 7, None]}

    assert redact_json(message) == {"content": [{"type": "text", "text": "[EMAIL]"}, 7, None]}


def test_the_name_of_a_field_tells_a_secret_too() -> None:
    call = {
        "input": {"db_password": "hunter2!", "apiKey": "a1b2c3d4e5", "max_tokens": 5},
        "ada@example.com": {"token": "word"},
    }

    once = redact_json(call)

    assert once == {
        "input": {"db_password": "[PASSWORD]", "apiKey": "[SECRET]", "max_tokens": 5},
        "[EMAIL]": {"token": "word"},
    }
    assert redact_json(once) == once


anything = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="0123456789 -+()@.abDE=:\"'[]", max_size=200),
    st.lists(
        st.sampled_from([*SECRETS, *PERSONAL, "password=", "bearer ", "@", "tel: ", "-----END"]),
        max_size=5,
    ).map("".join),
)


@given(anything)
def test_redaction_never_fails_and_is_done_once(text: str) -> None:
    once = redact(text)

    assert redact(once) == once


@given(st.text(alphabet=string.ascii_letters + " .,;!?\n\t", max_size=300))
def test_plain_words_are_never_touched(text: str) -> None:
    assert redact(text) == text


@given(
    st.text(max_size=60),
    st.sampled_from([*SECRETS, *PERSONAL]),
    st.sampled_from([" ", "\n", '"', ", ", "\u3002"]),
    st.text(max_size=60),
)
def test_what_is_planted_vanishes(before: str, planted: str, between: str, after: str) -> None:
    assert planted not in redact(f"{before}{between}{planted}{between}{after}")


def test_a_hostile_text_costs_no_more_than_its_length() -> None:
    for piece in (
        "eyJ",
        "-----BEGIN PRIVATE KEY-----",
        "a@a.",
        "1 ",
        "4",
        "password=",
        "DE89",
        "+1",
    ):
        redact(piece * (60_000 // len(piece)))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    build_redactor.cache_clear()


def test_presidio_adds_its_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        def analyze(self, *, text: str, language: str) -> list[Any]:
            start = text.find("Ada")
            found = [(start, start + 3, "PERSON")] if start >= 0 else []
            found += [(0, len(text), "MEDICAL")] if "[EMAIL]" in text else []
            return [SimpleNamespace(start=s, end=e, entity_type=kind) for s, e, kind in found]

    module = ModuleType("presidio_analyzer")
    module.AnalyzerEngine = Engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "presidio_analyzer", module)

    assert build_redactor("presidio")("Ada: a@b.example") == "[PERSON]: [EMAIL]"


def test_presidio_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)

    with pytest.raises(ModuleNotFoundError, match="everlearn\\[pii\\]"):
        build_redactor("presidio")
