"""Secrets and personal data out of a text before anything learns from it; each leaves a typed mark.

Found: keys and tokens of the usual shapes, private keys, passwords in addresses and assignments,
e-mail addresses, payment cards (Luhn), IBANs (mod 97) and phone numbers (valid ones with a country
code, or in the North American form).

Not covered by these patterns: names, postal addresses, dates of birth, national phone numbers of
other countries without a label, and secrets without a known shape or a label. Microsoft's Presidio
finds some of those; see :func:`build_redactor`.
"""

import re
from collections.abc import Callable
from functools import cache
from itertools import accumulate, zip_longest
from typing import Any, Literal

import phonenumbers

Redactor = Callable[[str], str]
"""A text without what must not be learnt; redacting twice changes nothing more."""

RedactorName = Literal["patterns", "presidio"]

PHONE_REGION = "US"
"""Whose national form of phone numbers is read; those with a country code are read everywhere."""

_MAX_ARMOURED_CHARS = 20_000
_MARK = re.compile(r"\[[A-Z_]{3,40}\]")

_KEYS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"el_[A-Za-z0-9_-]{20,}"
    r"|sk-[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic and their kin
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"  # Stripe
    r"|(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_-]{20,}"
    r"|xox[abceoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}"  # Slack
    r"|AIza[A-Za-z0-9_-]{35,}|ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}"  # Google
    r"|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36,}|pypi-[A-Za-z0-9_-]{50,}"
    r")"
)
_JWT = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?")
_ADDRESS_PASSWORD = re.compile(r"(://[^\s/:@\[\]]{0,200}:)([^\s/@]{1,500})(?=@)")
_AUTHORIZATION = re.compile(
    r"(authorization\\?[\"']?\s{0,5}[:=]\s{0,5}\\?[\"']?(?:basic|bearer|token)\s{1,5})([^\s\"'\\]{6,})",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(\bbearer\s{1,5})([A-Za-z0-9._~+/=-]{16,})", re.IGNORECASE)
_SECRET_NAME = (
    r"(?P<name>passw(?:or)?d|passphrase|pwd|secret|token|credentials?"
    r"|(?:api|access|private|secret|account|auth|encryption)[_ -]?key)"
)
_SECRET_FIELD = re.compile(rf"{_SECRET_NAME}$", re.IGNORECASE)
_ASSIGNMENT = re.compile(
    rf"({_SECRET_NAME}"
    r"\\*[\"']?\s{0,5}(?:=>|:=|=|:)\s{0,5})"
    r"(?P<value>\\*\"[^\"\n]{4,500}\"|\\*'[^'\n]{4,500}'|[^\s\"'\\,;&]{4,})",
    re.IGNORECASE,
)
_ARMOUR = re.compile(r"-----(?P<end>BEGIN|END) [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_ARMOURED_LINES = re.compile(r"(?:(?:\s|\\[nr])*[A-Za-z0-9+/=]{20,})+")
_ARMOURED_LINE = re.compile(r"\s*[A-Za-z0-9+/=]*\s*")

_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]+@(?:[\w-]+\.)+[^\W\d_]{2,}")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){11,30}")
_DIGITS = re.compile(r"(?<![0-9A-Za-z])[0-9]+(?:[ -][0-9]+)*(?![0-9A-Za-z])")
_PHONE_LABEL = re.compile(
    r"(\b(?:phone|tel|telephone|telefon|mobile|cell|fax|handy)\b\.?(?: number| no\.?)?\s{0,3}[:=]?\s{0,3})"
    r"(\+?\(?[0-9][0-9 ()/.-]{5,22}[0-9])",
    re.IGNORECASE,
)
_DIGIT_ROW = re.compile(
    r"(?<![0-9()/.+-])[+(]{0,2}[0-9][0-9()/.+-]{0,20}(?:\s{1,3}[0-9()/.+-]{1,20}){1,8}"
    r"(?!\s{0,3}[0-9()/.+-])"
)
_MAYBE_PHONE = re.compile(r"[0-9](?:[^\w\n]{0,3}[0-9]){6}")


def redact(text: str) -> str:
    """The text with every finding replaced by a mark such as ``[EMAIL]``.

    Nothing else changes: a text without findings comes back byte for byte.
    """
    return _until_still(text, _without_secrets, _without_personal_data)


def redact_secrets(text: str) -> str:
    """Likewise, keys, tokens and passwords only: for documents, whose names are what they teach."""
    return _until_still(text, _without_secrets)


def redact_json(value: Any, redactor: Redactor = redact) -> Any:
    """A JSON value with every string in it redacted, names of fields and what they name alike."""
    if isinstance(value, str):
        return redactor(value)
    if isinstance(value, list):
        return [redact_json(item, redactor) for item in value]
    if isinstance(value, dict):
        return {redactor(name): _field(name, item, redactor) for name, item in value.items()}
    return value


@cache
def build_redactor(name: RedactorName = "patterns") -> Redactor:
    """The redactor that a setting names.

    Raises:
        ModuleNotFoundError: Presidio is asked for and not installed.
    """
    return _with_presidio() if name == "presidio" else redact


def _until_still(text: str, *steps: Redactor) -> str:
    """Replacing one finding may lay another bare; every round leaves less, so this ends."""
    while True:
        before = text
        for step in steps:
            text = step(text)
        if text == before:
            return text


def _without_secrets(text: str) -> str:
    if "PRIVATE KEY" in text:
        text = _without_private_keys(text)
    text = _JWT.sub("[TOKEN]", text)
    text = _KEYS.sub("[API_KEY]", text)
    text = _ADDRESS_PASSWORD.sub(_marked("[PASSWORD]"), text)
    text = _AUTHORIZATION.sub(_marked("[TOKEN]"), text)
    text = _BEARER.sub(_bearer, text)
    return _ASSIGNMENT.sub(_assignment, text)


def _without_personal_data(text: str) -> str:
    text = _EMAIL.sub("[EMAIL]", text)
    text = _IBAN.sub(_iban, text)
    text = _DIGITS.sub(_cards, text)
    return _without_phones(text)


def _marked(mark: str) -> Callable[[re.Match[str]], str]:
    """Replaces the second group, unless it is a mark already."""

    def replace(match: re.Match[str]) -> str:
        return match[0] if _MARK.match(match[2]) else match[1] + mark

    return replace


def _field(name: str, value: Any, redactor: Redactor) -> Any:
    """The value of a JSON field, whose name may say that it is a password."""
    found = _SECRET_FIELD.search(name)
    if isinstance(value, str) and found and _looks_secret(value, is_password=_is_password(found)):
        return "[PASSWORD]" if _is_password(found) else "[SECRET]"
    return redact_json(value, redactor)


def _is_password(found: re.Match[str]) -> bool:
    return found["name"].casefold().startswith("p") and "key" not in found["name"].casefold()


def _bearer(match: re.Match[str]) -> str:
    """Prose bears long words too; a token has a digit, or is longer than any word."""
    is_token = len(match[2]) >= 32 or any(char.isdigit() for char in match[2])
    return match[1] + "[TOKEN]" if is_token else match[0]


def _assignment(match: re.Match[str]) -> str:
    quoted = re.fullmatch(r"(\\*[\"'])(.*?)(\\*[\"'])", match["value"], re.DOTALL)
    opening, value, closing = quoted.groups() if quoted else ("", match["value"], "")
    is_password = _is_password(match)
    if _MARK.match(value) or not _looks_secret(value, is_password=is_password):
        return match[0]
    return f"{match[1]}{opening}{'[PASSWORD]' if is_password else '[SECRET]'}{closing}"


def _looks_secret(value: str, *, is_password: bool) -> bool:
    """Whether an assigned value is more than a word of prose or the name of a variable."""
    if value.startswith(("${", "{{", "<")):
        return False
    has_digit = any(char.isdigit() for char in value)
    has_letter = any(char.isalpha() for char in value)
    if is_password:
        return has_digit or not value.strip(".:!?)").isalpha()
    return len(value) >= 8 and has_digit and has_letter


def _without_private_keys(text: str) -> str:
    """Armoured keys, whole or cut at either side, as a chunk of a document may hold them."""
    kept: list[str] = []
    position = 0
    marks = list(_ARMOUR.finditer(text))
    for mark, following in zip_longest(marks, marks[1:]):
        if mark.start() < position:
            continue
        start, end = mark.span()
        if mark["end"] == "END":
            start = _start_of_armoured(text, position, start)
        elif (
            following
            and following["end"] == "END"
            and following.start() - end <= _MAX_ARMOURED_CHARS
        ):
            end = following.end()
        elif lines := _ARMOURED_LINES.match(text, end):
            end = lines.end()
        kept += [text[position:start], "[PRIVATE_KEY]"]
        position = end
    return "".join([*kept, text[position:]])


def _start_of_armoured(text: str, floor: int, end: int) -> int:
    """Where the run of lines in base64 begins that stops at ``end``."""
    start = end
    while start > floor:
        line_start = max(text.rfind("\n", floor, start - 1) + 1, floor)
        if not _ARMOURED_LINE.fullmatch(text, line_start, start):
            break
        start = line_start
    return start


def _iban(match: re.Match[str]) -> str:
    """The longest beginning that is an IBAN is marked; what follows it may be the next word."""
    found = match[0]
    ends = [at + 1 for at, char in enumerate(found) if char.isalnum()]
    for end in reversed(ends[14:]):
        is_cut_short = end < len(found) and found[end].isalnum()
        if not is_cut_short and _is_iban(re.sub("[ -]", "", found[:end])):
            return "[IBAN]" + found[end:]
    return found


def _is_iban(compact: str) -> bool:
    """ISO 13616: country and check digits to the end, letters as 10 to 35, remainder 1."""
    return int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4])) % 97 == 1


def _cards(match: re.Match[str]) -> str:
    """Marks the groups of digits that make a card's number together; others stay."""
    parts = re.split("([ -])", match[0])  # groups at even places, separators between them
    out: list[str] = []
    place = 0
    while place < len(parts):
        taken = _card_at(parts, place)
        out.append("[CARD]" if taken else parts[place])
        place += taken or 1
    return "".join(out)


def _card_at(parts: list[str], place: int) -> int:
    """How many parts from ``place`` on are one card's number; 0 if none are."""
    if place % 2 or parts[place][0] not in "23456":
        return 0
    window = parts[place : place + 37]
    lengths = list(accumulate(len(part) for part in window[::2]))
    for groups in range(len(lengths), 0, -1):
        if 13 <= lengths[groups - 1] <= 19 and _passes_luhn("".join(window[: 2 * groups : 2])):
            return 2 * groups - 1
    return 0


def _passes_luhn(digits: str) -> bool:
    """ISO/IEC 7812: from the right, every second digit doubled, its digits summed."""
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + doubled) % 10 == 0


def _without_phones(text: str) -> str:
    text = _PHONE_LABEL.sub(_marked("[PHONE]"), text)
    if not _MAYBE_PHONE.search(text):
        return text
    return _DIGIT_ROW.sub(_phone_row, _without_found_phones(text))


def _without_found_phones(text: str) -> str:
    kept: list[str] = []
    position = 0
    for match in phonenumbers.PhoneNumberMatcher(text, PHONE_REGION):
        kept += [text[position : match.start], "[PHONE]"]
        position = match.end
    return "".join([*kept, text[position:]])


def _phone_row(match: re.Match[str]) -> str:
    """The library takes all digits in a row for one number: of a row in which it finds none, the
    longest beginning that holds one is marked ("(212) 736-5000 24 hours a day")."""
    row = match[0]
    for gap in reversed([found.start() for found in re.finditer(r"\s+", row)]):
        begun = _without_found_phones(row[:gap])
        if begun != row[:gap]:
            return begun + row[gap:]
    return row


def _with_presidio() -> Redactor:
    """Presidio's findings after our own; it costs milliseconds a text and memory for a model."""
    try:
        from presidio_analyzer import AnalyzerEngine
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Presidio is not installed; `pip install 'everlearn[pii]'`, or set "
            "EVERLEARN_CAPTURE__REDACTOR=patterns."
        ) from error
    analyzer = AnalyzerEngine()

    def analysed(text: str) -> str:
        found = analyzer.analyze(text=text, language="en")
        for result in sorted(found, key=lambda result: result.start, reverse=True):
            marks = _MARK.finditer(text)
            if all(result.end <= mark.start() or mark.end() <= result.start for mark in marks):
                text = f"{text[: result.start]}[{result.entity_type}]{text[result.end :]}"
        return text

    def redactor(text: str) -> str:
        return _until_still(text, _without_secrets, _without_personal_data, analysed)

    return redactor
