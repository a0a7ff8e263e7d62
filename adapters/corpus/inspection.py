"""What is wrong with a document before anything is learnt from it, with the reason and the remedy.

Four severities: a document is *refused* (there is nothing to learn in it), *quarantined* (no run
takes it until an admin releases it), or *contained* (the part at fault is left out of lessons and
exams); a *note* changes nothing.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from adapters.corpus.instructions import Sign, count_invisible, find_suspects
from adapters.corpus.languages import READ_BY_RULE, languages_of, main_language

_WORD = re.compile(r"[^\W\d_]+|\d+")
_UNSPACED = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
"""Letters of scripts that put no space between words: each counts as a word."""
_SIGNS_FROM = 0.75
"""Share of signs and digits from which a text is no prose."""
_REPEATED_FROM = 0.95
_FEWEST_DISTINCT = 50
_MOST_WORDS_SEEN = 20_000
_BLOB = re.compile(r"[^\s]{80,}")
_BLOBS_FROM = 0.6
_EXCERPT_CHARS = 120
_MOST_CONTAINED = 200
"""Sentences; a text with more of them is no slip, however long it is."""


class Severity(StrEnum):
    """What follows from a finding."""

    REFUSE = "refuse"
    QUARANTINE = "quarantine"
    CONTAIN = "contain"
    NOTE = "note"


class FindingKind(StrEnum):
    """What is wrong."""

    NEARLY_EMPTY = "nearly_empty"
    REPETITION = "repetition"
    NO_PROSE = "no_prose"
    LANGUAGE = "language"
    INSTRUCTION = "instruction"
    CONTROL_TOKEN = "control_token"
    ENCODED = "encoded"
    CONCEALED = "concealed"
    INVISIBLE = "invisible"
    NEAR_DUPLICATE = "near_duplicate"
    CONTRADICTION = "contradiction"
    SUPERSEDED = "superseded"
    LONG = "long"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a document; with a place, `text[start:end]` is at fault."""

    kind: FindingKind
    severity: Severity
    detail: str
    chunk: int | None = None
    start: int | None = None
    end: int | None = None
    document: str | None = None
    """Another document that it is about."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is still taken."""

    min_words: int = 5
    languages: Sequence[str] = ()
    """ISO 639-1 codes; none: any."""
    instruction_share: float = 0.2
    """Share of a text's characters from which its instructions keep all of it in quarantine."""
    lesson_chunks: int = 400
    """How many chunks of one document a lesson takes."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in one document, by itself."""

    language: str | None
    findings: tuple[Finding, ...]

    @property
    def refusal(self) -> str | None:
        """Why it is refused, and what can be done; None when it is not."""
        refused = (f.detail for f in self.findings if f.severity is Severity.REFUSE)
        return next(refused, None)


def inspect(chunks: Sequence[str], limits: Limits) -> Inspection:
    """Everything that one document shows by itself; its text is the chunks joined."""
    if refused := _emptiness(chunks, limits):
        return Inspection(None, (refused,))
    told = languages_of(chunks)
    language = main_language(chunks, told)
    findings = [
        *_repetition(chunks),
        *_language(told, language, limits),
        *_suspects(chunks, limits),
        *_invisible(chunks),
        *_length(chunks, limits),
    ]
    return Inspection(language, tuple(findings))


def excerpt(text: str) -> str:
    """The beginning of a text, on one line."""
    flat = "".join(char if char.isprintable() else "\u00b7" for char in " ".join(text.split()))
    return flat if len(flat) <= _EXCERPT_CHARS else flat[: _EXCERPT_CHARS - 1] + "\u2026"


def _emptiness(chunks: Sequence[str], limits: Limits) -> Finding | None:
    """A text of which nothing can be learnt."""
    sample = _sample(chunks)
    words = _words(sample)
    if len(set(words)) < limits.min_words:
        return Finding(
            FindingKind.NEARLY_EMPTY,
            Severity.REFUSE,
            f"It has {len(set(words))} different words, fewer than {limits.min_words}: too little "
            "to learn. Send whole sentences, or lower EVERLEARN_DOCUMENTS__MIN_WORDS.",
        )
    shown = [char for char in sample if not char.isspace()]
    signs = sum(not char.isalpha() for char in shown) / len(shown)
    blobs = sum(len(m) for m in _BLOB.findall(sample) if not _UNSPACED.search(m)) / len(shown)
    if signs > _SIGNS_FROM or blobs > _BLOBS_FROM:
        what = "signs and digits" if signs > _SIGNS_FROM else "letters without spaces"
        return Finding(
            FindingKind.NO_PROSE,
            Severity.REFUSE,
            f"It is {max(signs, blobs):.0%} {what}, which is no prose. Lessons are made of "
            "sentences: say in words what it means, and send that.",
        )
    return None


def _repetition(chunks: Sequence[str]) -> Iterable[Finding]:
    words = _words(_sample(chunks))
    runs = [tuple(words[at : at + 5]) for at in range(len(words) - 4)]
    if len(runs) < _FEWEST_DISTINCT or len(set(runs)) / len(runs) > 1 - _REPEATED_FROM:
        return
    few = len(set(words)) < _FEWEST_DISTINCT
    yield Finding(
        FindingKind.REPETITION,
        Severity.QUARANTINE if few else Severity.NOTE,
        f"{1 - len(set(runs)) / len(runs):.0%} of its runs of five words stood before in it. "
        "Send each passage once.",
    )


def _language(told: dict[int, str], main: str | None, limits: Limits) -> Iterable[Finding]:
    if main and limits.languages and main not in limits.languages:
        yield Finding(
            FindingKind.LANGUAGE,
            Severity.REFUSE,
            f"It is written in '{main}'; EVERLEARN_DOCUMENTS__LANGUAGES takes "
            f"{', '.join(limits.languages)}. Send a translation, or add the language.",
        )
    elif main and main != READ_BY_RULE:
        yield Finding(
            FindingKind.LANGUAGE,
            Severity.CONTAIN,
            f"It is written in '{main}', which the rules cannot read: it is learnt as passages "
            "only, and no question is made from it by rule. Without questions of your own its "
            "exam can only be inconclusive: send some in the field `questions`.",
        )
    elif foreign := Counter(code for code in told.values() if code != main):
        yield Finding(
            FindingKind.LANGUAGE,
            Severity.CONTAIN,
            f"Chunks in another language ({', '.join(sorted(foreign))}): "
            f"{', '.join(str(at) for at in sorted(told) if told[at] != main)[:200]}. They are "
            "learnt as passages only, and no question is made from them by rule.",
        )


_WHY = {
    Sign.INSTRUCTION: (FindingKind.INSTRUCTION, "It tells the learner what to do"),
    Sign.CONTROL_TOKEN: (FindingKind.CONTROL_TOKEN, "It holds marks of a chat's turns"),
    Sign.ENCODED: (FindingKind.ENCODED, "It holds encoded text"),
    Sign.CONCEALED: (FindingKind.CONCEALED, "It holds characters that hide or turn round text"),
}


def _suspects(chunks: Sequence[str], limits: Limits) -> Iterable[Finding]:
    """The sentences that speak to the learner; last, if there are too many, what that means."""
    count = offset = suspect_chars = 0
    for at, chunk in enumerate(chunks):
        for suspect in find_suspects(chunk):
            sentence = chunk[suspect.start : suspect.end]
            count += 1
            suspect_chars += len(sentence.strip())
            if count <= _MOST_CONTAINED:
                kind, why = _WHY[suspect.sign]
                yield Finding(
                    kind,
                    Severity.CONTAIN,
                    f"{why}, so it is left out: {excerpt(sentence)}",
                    chunk=at,
                    start=offset + suspect.start,
                    end=offset + suspect.end,
                )
        offset += len(chunk)
    share = suspect_chars / max(1, sum(len(chunk.strip()) for chunk in chunks))
    if count > _MOST_CONTAINED or share >= limits.instruction_share:
        yield Finding(
            FindingKind.INSTRUCTION,
            Severity.QUARANTINE,
            f"{count} of its sentences ({share:.0%} of the text) speak to the learner. If it is "
            "honest, an admin can release it; else delete it.",
        )


def _invisible(chunks: Sequence[str]) -> Iterable[Finding]:
    if count := sum(map(count_invisible, chunks)):
        yield Finding(
            FindingKind.INVISIBLE,
            Severity.NOTE,
            f"{count} invisible characters are left out.",
        )


def _length(chunks: Sequence[str], limits: Limits) -> Iterable[Finding]:
    if len(chunks) > limits.lesson_chunks:
        yield Finding(
            FindingKind.LONG,
            Severity.CONTAIN,
            f"A lesson takes the first {limits.lesson_chunks} of its {len(chunks)} chunks "
            "(EVERLEARN_DOCUMENTS__LESSON_CHUNKS). Send the parts that matter as documents of "
            "their own.",
        )


def _sample(chunks: Sequence[str]) -> str:
    """The beginning of the text, with as many words as tell what it is like."""
    taken, words = [], 0
    for chunk in chunks:
        taken.append(chunk)
        words += chunk.count(" ") + 1
        if words > _MOST_WORDS_SEEN:
            break
    return "".join(taken)


def _words(text: str) -> list[str]:
    """The words in lower case; of unspaced scripts the letters."""
    spaced = _UNSPACED.sub(lambda letter: f" {letter.group()} ", text)
    return [word.casefold() for word in _WORD.findall(spaced)]
