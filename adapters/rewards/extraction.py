"""The final answer in a reply, by the kind of answer; None where there is none.

Where a reply is ambiguous no answer is better than a wrong one: in a vote a wrong answer counts, and
no answer does not. TTRL's own code takes the last number of whatever is said ("see chapter 3" gives
3) and an empty string for nothing. The rules here, in order; the first that applies decides:

1. What a reasoner thinks (`<think>...</think>`) is no part of the reply; if it never ends, there is
   no answer.
2. Boxed: the content of `\\boxed{}`. Boxes of different content, and empty or unfinished ones, give
   no answer.
3. Marked: what follows "the answer is", "answer:", "####" or stands in `<answer>` tags, up to the end
   of the sentence. Of "3 + 5 = 8" it is what follows the last "=". Marks that
   differ give no answer, and neither does a last one that holds nothing readable.
4. Unmarked, by kind. Number: a reply or first line that is the number, with at most three words
   behind it ("8 apples"); the one number in bold; the last equation; a last sentence that ends with
   a verb and the number ("that makes 8 apples."). All of these that a reply has must agree. Choice:
   a line that begins with the letter ("B", "(B)", "B) Paris"). Label: the one label that is named,
   unless it is denied. JSON: the one fenced block, else the one object or list. Math: the one
   formula between dollars, else as a number.

A sign may be a word ("negative 3"), and a number that is denied ("not 8") is no answer.
An answer is never empty and never longer than 200 characters, JSON and text apart.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

from adapters.rewards.amounts import amount_of, amounts_in, plain_text, worded_amount
from adapters.rewards.json_values import json_values_in, write_json
from adapters.spec import AnswerKind, AnswerSpec
from adapters.spec.patterns import compiled

PATTERN_TIMEOUT_S = 0.2
"""For one search with a user's pattern in one reply."""
_MOST_READ = 8_000
_MOST_WHOLE = 20_000
_WHOLE = frozenset({AnswerKind.JSON, AnswerKind.REGEX, AnswerKind.TEXT})
_MOST_ANSWER = 200
_MOST_TEXT = 4_000
_MOST_DENIAL = 80
"""Characters before a number that are looked at for a denial of it."""

_BOX = re.compile(r"\\f?boxed\s*")
_THOUGHT = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_THOUGHT_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_MARK = re.compile(
    r"(?:####"
    r"|\b(?:final |correct |right |best )?(?:answer|solution|result|option|choice)\b"
    r"(?: to [^.:\n]{1,80}?)?\s*(?:(?:is|would be|must be|will be|are)\b\s*:?|:|=))[\s*_]*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)|;")
_BOLD = re.compile(r"\*\*(.{1,60}?)\*\*|__(.{1,60}?)__")
_VERB = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|equal to|makes?|gives?|gets?|got|has|have|leaves?|totals?|sum|"
    r"difference|product|there(?:'s|\u2019s)|it(?:'s|\u2019s)|becomes?|yields?|obtains?|only|answer)|[=:\u2248\u2192])\s*$",
    re.IGNORECASE,
)
_EQUALS = re.compile(r"\b(?:equals|is equal to)\b", re.IGNORECASE)
_GOES_ON = re.compile(
    r"\s*(?:[-+*/^\u00d7\u00f7]|(?:times|plus|minus|divided|multiplied|x)\b)", re.IGNORECASE
)
_SIGN_WORD = re.compile(
    # "10 minus 3" is a sum, so a minus is a sign only where no number stands before it.
    r"(?:\bnegative|(?P<before>^|[=:(]\s*|\b(?:is|are|be|equals|to|gives|makes|not)\s+)minus)\s+(?=\.?\d)",
    re.IGNORECASE,
)
_NOT = r"(?:\b(?:can)?not\b|n['\u2019]t\b)"
_DENIES = re.compile(rf"(?:{_NOT}|\bnever|\bneither|\bnor)\s+(?:\w+\s+){{0,2}}$", re.IGNORECASE)
_UNITS = re.compile(r"(?:\s+[^\W\d_][\w'/-]*){0,3}\s*[.!]?\s*$")


def extract(reply: str, spec: AnswerSpec) -> str | None:
    """The answer that a reply gives, in one line of text; None where it gives none."""
    said = _end_of(_spoken(reply), spec.kind)
    if not said.strip():
        return None
    answer = _BY_KIND[spec.kind](said, spec)
    if answer is None or not answer.strip():
        return None
    return answer.strip()


def find_pattern(pattern: str, text: str) -> str | None:
    """What a user's pattern finds in a text, under a time limit; None for nothing or many things.

    Its group `answer`, else its first group, else all of it.
    """
    try:
        matches = compiled(pattern).finditer(text, timeout=PATTERN_TIMEOUT_S)
        found = {_group(match) for match in matches}
    except (ValueError, TimeoutError):
        return None
    found = {each.strip() for each in found if each and each.strip()}
    return found.pop() if len(found) == 1 else None


def choice_of(text: str) -> str | None:
    """The letter that a text such as "B", "(b)", "B) Paris" or "\\text{B}" names."""
    match = _CHOICE.match(plain_text(text).strip())
    return match["letter"].upper() if match else None


def labels_in(text: str, labels: Iterable[str]) -> set[str]:
    """Which labels a text names as whole words, whatever their case; longer ones go first."""
    folded = fold(text)
    found: set[str] = set()
    for label in sorted(labels, key=lambda each: (-len(each), each)):
        pattern = re.compile(rf"(?<!\w){re.escape(fold(label))}(?!\w)")
        if fold(label).strip() and pattern.search(folded):
            found.add(label)
            folded = pattern.sub("\0", folded)
    return found


def fold(text: str) -> str:
    """The text in lower case (NFKC), words one space apart."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _spoken(reply: str) -> str:
    """What stands after the thoughts; nothing where they never end."""
    ends = [match.end() for match in _THOUGHT_END.finditer(reply)]
    said = reply[ends[-1] :] if ends else reply
    return "" if _THOUGHT.search(said) else said


def _end_of(said: str, kind: AnswerKind) -> str:
    """The last lines of a long reply, where the answer is; nothing where all of it would count."""
    if kind in _WHOLE:
        return said if len(said) <= _MOST_WHOLE else ""
    return said if len(said) <= _MOST_READ else said[-_MOST_READ:].partition("\n")[2]


def _short(answer: str | None) -> str | None:
    return answer if answer is not None and len(answer) <= _MOST_ANSWER else None


# Boxed and marked


def _boxes(said: str) -> list[str]:
    """The contents of all whole boxes, in order; an unfinished one is none."""
    found: list[str] = []
    for match in _BOX.finditer(said):
        content = _braced(said, match.end())
        if content is not None and content.strip():
            found.append(content.strip())
    return found


def _braced(text: str, start: int) -> str | None:
    if not text.startswith("{", start):
        return None
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + 1 : place]
    return None


def _marked(said: str) -> list[str]:
    """What stands in answer tags, else behind each mark up to the end of its sentence."""
    if tagged := [match.strip() for match in _TAGGED.findall(said)]:
        return tagged
    found = []
    for match in _MARK.finditer(said):
        rest = said[match.end() :]
        end = _SENTENCE_END.search(rest)
        found.append(rest[: end.start()].strip() if end else rest.strip())
    return found


def _agreed(
    candidates: Iterable[str], read: Callable[[str], str | None], key: Callable[[str], object]
) -> str | None:
    """What all candidates say; None where one says nothing or two differ."""
    answers = [read(candidate) for candidate in candidates]
    if not answers or any(answer is None for answer in answers):
        return None
    said = [answer for answer in answers if answer is not None]
    return said[-1] if len({key(answer) for answer in said}) == 1 else None


def _extracted(
    said: str,
    read: Callable[[str], str | None],
    key: Callable[[str], object],
    otherwise: Callable[[str], str | None],
) -> str | None:
    if _BOX.search(said):
        return _agreed(_boxes(said), read, key)
    if marked := _marked(said):
        readable = [each for each in marked if read(each) is not None]
        return _agreed(readable, read, key) if marked[-1] in readable else None
    return otherwise(said)


# Numbers


def _number(said: str, spec: AnswerSpec) -> str | None:
    return _short(_extracted(said, _number_in, _value, _unmarked_number))


def _value(answer: str) -> Fraction | None:
    return amount_of(answer)


def _signed(text: str) -> str:
    """A plain text in which the sign of a number is no word: "negative 3" is "-3"."""
    return _SIGN_WORD.sub(r"\g<before>-", plain_text(text).strip())


def _denies(before: str) -> bool:
    """Whether a number is denied by what stands before it, at most two words away."""
    return _DENIES.search(before[-_MOST_DENIAL:]) is not None


def _number_in(text: str) -> str | None:
    """The one number of a short text, units aside; behind an "=" what follows the last one."""
    plain = _signed(text)
    _, equals, behind = _EQUALS.sub(" = ", plain).rpartition("=")
    said = behind if equals else plain
    found = list(amounts_in(said))
    if found:
        if any(_denies(said[: each.start]) for each in found):
            return None
        return found[-1].literal if len({each.value for each in found}) == 1 else None
    words = plain.strip().rstrip(".!").split()
    for count in range(len(words), max(0, len(words) - 4), -1):  # "twelve cranes"
        head = " ".join(words[:count])
        if worded_amount(head) is not None:
            return head
    return None


def _unmarked_number(said: str) -> str | None:
    candidates = list(_loose_numbers(said))
    if not candidates:
        return None
    return candidates[-1] if len({_value(each) for each in candidates}) == 1 else None


def _loose_numbers(said: str) -> Iterator[str]:
    lines = [line for line in said.splitlines() if line.strip()]
    if (bare := _bare_number(lines[0])) is not None:
        yield bare
    bold = [
        _bare_number(match[1] or match[2])
        for match in _BOLD.finditer(said)
        if not _denies(said[: match.start()])
    ]
    in_bold = {_value(each): each for each in bold if each is not None}
    if len(in_bold) == 1:
        yield next(iter(in_bold.values()))
    if (equated := _last_equation(_signed(said))) is not None:
        yield equated
    if (concluded := _conclusion(_signed(lines[-1]))) is not None:
        yield concluded


def _bare_number(text: str) -> str | None:
    """The number that a line is, with at most three words behind it."""
    plain = _signed(text)
    found = list(amounts_in(plain))
    if len(found) == 1:
        before, behind = plain[: found[0].start], plain[found[0].end :]
        if re.search(_NOT, behind, re.IGNORECASE):  # "8 is not right"
            return None
        is_alone = not before.strip(" (") and _UNITS.match(behind.rstrip(") "))
        return found[0].literal if is_alone else None
    words = plain.rstrip(".!")
    return words if not found and worded_amount(words) is not None else None


def _last_equation(plain: str) -> str | None:
    """What follows the last "=", if no other number comes after it."""
    before, equals, behind = _EQUALS.sub(" = ", plain).rpartition("=")
    found = list(amounts_in(behind))
    if not equals or not before.strip() or not found or behind[: found[0].start].strip():
        return None
    if _GOES_ON.match(behind, found[0].end):
        return None
    return found[0].literal if len({each.value for each in found}) == 1 else None


def _conclusion(line: str) -> str | None:
    """The number at the end of a last sentence, behind a verb, with at most three words of units."""
    found = list(amounts_in(line))
    if not found:
        return None
    last = found[-1]
    if _GOES_ON.match(line, last.end) or _denies(line[: last.start]):
        return None
    says_so = _VERB.search(line[: last.start]) and _UNITS.match(line[last.end :])
    return last.literal if says_so else None


# Mathematics

_DOLLARS = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def _math(said: str, spec: AnswerSpec) -> str | None:
    return _short(_extracted(said, _formula_in, str.strip, _unmarked_formula))


def _formula_in(text: str) -> str | None:
    """A formula: what is between dollars, if anything is, else all of it, if it is no prose."""
    inner = [next(filter(None, groups)) for groups in _DOLLARS.findall(text)]
    if len(inner) > 1:
        return None
    formula = (inner[0] if inner else text).strip().strip("*").rstrip(".").strip()
    if not formula:
        return None
    if inner or not _is_prose(formula):
        return formula
    return _number_in(text)


def _is_prose(text: str) -> bool:
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", " ", text))
    return any(word.casefold() not in _FUNCTIONS for word in words)


_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "pi", "inf"}
)


def _unmarked_formula(said: str) -> str | None:
    """The one formula between dollars, else the reply, if it is one; behind its last "="."""
    inner = {next(filter(None, groups)).strip() for groups in _DOLLARS.findall(said)}
    if len(inner) == 1:
        return inner.pop().rpartition("=")[2].strip() or None
    if not inner and not _is_prose(plain_text(said)) and "\n" not in said.strip():
        return _formula_in(said.rpartition("=")[2])
    return _unmarked_number(said)


# Choices and labels

_CHOICE = re.compile(r"[(\[]?(?P<letter>[A-Ja-j])(?:[)\].:]|\s*$|\s+[-\u2013])")
_CHOICE_MARKED = re.compile(
    r"(?:option |choice |letter )?[(\[]?(?P<letter>[A-J])(?:[)\].:,]|\s*$|\s+(?:[-\u2013]|because|since|as)\b)",
)
_CHOICE_LINE = re.compile(
    r"^\s*(?:option |choice )?[(\[]?(?P<letter>[A-J])(?:[)\].:](?!\w)|\s*$)",
    re.MULTILINE | re.IGNORECASE,
)


def _choice(said: str, spec: AnswerSpec) -> str | None:
    return _extracted(said, _marked_choice, str, _unmarked_choice)


def _marked_choice(text: str) -> str | None:
    plain = plain_text(text).strip()
    if re.fullmatch(r"[(\[]?[a-jA-J][)\].]?", plain):
        return choice_of(plain)
    match = _CHOICE_MARKED.match(plain) or re.match(r"[(\[](?P<letter>[a-j])[)\]]", plain)
    return match["letter"].upper() if match else None


def _unmarked_choice(said: str) -> str | None:
    letters = {match["letter"].upper() for match in _CHOICE_LINE.finditer(plain_text(said))}
    return letters.pop() if len(letters) == 1 else None


_DENIAL = re.compile(rf"(?:{_NOT}|\bnever|\bno|\bneither|\bnor)\s+(?:\w+\s+){{0,2}}$")


def _label(said: str, spec: AnswerSpec) -> str | None:
    def read(text: str) -> str | None:
        found = labels_in(plain_text(text), spec.labels)
        label = found.pop() if len(found) == 1 else None
        return None if label is None or _is_denied(text, label) else label

    return _extracted(said, read, str, read)


def _is_denied(text: str, label: str) -> bool:
    folded = fold(plain_text(text))
    matches = re.finditer(rf"(?<!\w){re.escape(fold(label))}(?!\w)", folded)
    return any(_DENIAL.search(folded[: match.start()]) for match in matches)


# JSON, patterns, text


def _json(said: str, spec: AnswerSpec) -> str | None:
    rows = {write_json(value) for value in json_values_in(said)}
    return rows.pop() if len(rows) == 1 else None


def _pattern(said: str, spec: AnswerSpec) -> str | None:
    return _short(find_pattern(spec.pattern, said)) if spec.pattern else None


def _group(match: Any) -> str | None:
    if "answer" in match.re.groupindex:
        found: str | None = match["answer"]
    else:
        found = match[1 if match.re.groups else 0]
    return found


_AROUND = " .!?\"'`*"


def _text(said: str, spec: AnswerSpec) -> str | None:
    return fold(said).strip(_AROUND)[:_MOST_TEXT] or None


_BY_KIND: dict[AnswerKind, Callable[[str, AnswerSpec], str | None]] = {
    AnswerKind.NUMBER: _number,
    AnswerKind.MATH: _math,
    AnswerKind.CHOICE: _choice,
    AnswerKind.LABEL: _label,
    AnswerKind.JSON: _json,
    AnswerKind.REGEX: _pattern,
    AnswerKind.TEXT: _text,
}
