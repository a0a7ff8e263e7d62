"""Invented worlds for the tiny test model: names, things, and facts in many wordings.

`words.txt` holds lists of words; `facts.txt` the kinds of fact: a head line `= SUBJECT ANSWER EXTRA
QUESTION-WORD WEIGHT`, then statements (.), one with a pronoun (~), questions (?). All our own; any
likeness of an invented name to a real one is chance. Boundary: knows nothing of chat or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

_HERE = Path(__file__).parent
WORDS = {
    name: words.split(", ")
    for name, _, words in (
        line.partition(": ") for line in (_HERE / "words.txt").read_text().splitlines()
    )
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One invented fact: what it is about, its answer, and ways to say and to ask it."""

    subject: str
    answer: str
    statements: tuple[str, ...]
    """Whole sentences; each holds `answer`."""
    short: str
    """A statement with a pronoun for its subject, as running text has it."""
    questions: tuple[str, ...]
    asked_by: str
    """The question word that can stand in the answer's place: "The keeper is who?"."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A titled bundle of facts about one thing and the people around it."""

    title: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class _Kind:
    subject: str
    answer: str
    extra: str
    asked_by: str
    weight: int
    statements: tuple[str, ...]
    short: str
    questions: tuple[str, ...]


def make_topic(rng: Random, *, facts: int) -> Topic:
    """Invent a thing with `facts` facts; about a fifth of them are about a person named in others."""
    subject = _thing_name(rng)
    made: dict[tuple[str, ...], Fact] = {}
    people: list[str] = []
    while len(made) < facts:
        is_personal = bool(people) and rng.random() < 0.2
        about = rng.choice(people) if is_personal else subject
        kinds = [kind for kind in _KINDS if (kind.subject == "person") == is_personal]
        kind = rng.choices(kinds, [kind.weight for kind in kinds])[0]
        extra = rng.choice(WORDS[kind.extra]) if kind.extra != "-" else ""
        key = _what_is_asked(kind, about, extra)
        if key in made:
            continue
        made[key] = _make_fact(rng, kind, about, extra)
        if kind.answer == "person" and not is_personal:
            people.append(made[key].answer)
    ordered = sorted(made.values(), key=lambda fact: fact.subject != subject)
    return Topic(title=_capital(subject), facts=tuple(ordered))


def person_name(rng: Random) -> str:
    """A first and a last name, sometimes both made of syllables nobody has seen together."""
    is_listed = rng.random() < 0.6
    first = rng.choice(WORDS["first names"]) if is_listed else new_word(rng, ends="first ends")
    return f"{first} {new_word(rng, ends='last ends')}"


def new_word(rng: Random, *, ends: str = "place ends") -> str:
    """One made-up word, such as a place or a boat is called by."""
    word = rng.choice(WORDS["onsets"]) + rng.choice(WORDS["nuclei"])
    if rng.random() < 0.5:
        word += rng.choice(WORDS["middles"])
    if rng.random() < 0.85 or len(word) < 3:
        word += rng.choice(WORDS[ends])
    return word


def _thing_name(rng: Random) -> str:
    noun, place = rng.choice(WORDS["things"]), new_word(rng)
    proper = f"{place} {_capital(noun)}"
    names = (proper, f"the {proper}", f"the {place} {noun}", f"the {noun} of {place}")
    return rng.choices(names, (5, 3, 5, 3))[0]


def _what_is_asked(kind: _Kind, about: str, extra: str) -> tuple[str, ...]:
    """Equal for facts whose questions are equal: a topic has one place, and one cook."""
    return about, kind.questions[0].format(e="", x=extra, last="")


def _make_fact(rng: Random, kind: _Kind, about: str, extra: str) -> Fact:
    answer = _make_answer(rng, kind.answer)

    def fill(template: str) -> str:
        words = {"e": about, "a": answer, "x": extra, "last": extra.rpartition(" ")[2]}
        return _capital(template.format(**words))

    statements = [fill(template) for template in kind.statements]
    if kind.short.startswith("its "):
        statements.append(fill(f"{{e}}'s {kind.short[4:]}"))
    short = fill(kind.short) if kind.short else statements[0]
    questions = tuple(fill(template) for template in kind.questions)
    return Fact(about, answer, tuple(statements), short, questions, kind.asked_by)


def _make_answer(rng: Random, kind: str) -> str:
    match kind:
        case "person":
            return person_name(rng)
        case "word":
            return new_word(rng)
        case "name":
            return new_word(rng) if rng.random() < 0.6 else rng.choice(WORDS["first names"])
        case "year":
            return str(rng.randint(1500, 2024))
        case "number":
            return str(rng.randint(3, 99) if rng.random() < 0.5 else rng.randint(100, 999))
        case "dish":
            return f"{rng.choice(WORDS['flavours'])} {rng.choice(WORDS['dishes'])}"
        case _:
            return rng.choice(WORDS[kind])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _read_kind(block: str) -> _Kind:
    head, *lines = block.splitlines()
    subject, answer, extra, *asked_by, weight = head.split()
    by_mark = {mark: tuple(x[2:] for x in lines if x.startswith(mark)) for mark in ".~?"}
    return _Kind(
        subject,
        answer,
        extra,
        " ".join(asked_by),
        int(weight),
        by_mark["."],
        next(iter(by_mark["~"]), ""),
        by_mark["?"],
    )


_KINDS = tuple(_read_kind(block) for block in (_HERE / "facts.txt").read_text()[2:].split("\n= "))
