"""What the tiny test model reads while it is trained: an endless, seeded stream of examples.

Facts of invented topics that stay for a while and must be known by heart, in every wording; texts
with questions, answered by copying; a small stock of general knowledge and small talk.
Boundary: makes text only; `build` tokenises and trains. `world` invents the facts.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.support.tiny_model.world import WORDS, Fact, Topic, make_topic, new_word

GENERAL_SUITE = Path(__file__).parents[3] / "adapters" / "evaluation" / "general_suite.json"
GENERAL_STOCK = Path(__file__).with_name("general.txt")


@dataclass(frozen=True, slots=True)
class Example:
    """Plain text (`turns` empty, every token trained) or a chat whose replies are trained."""

    text: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Lesson:
    """A topic as it is taught, and what is asked about it afterwards in other words."""

    taught: tuple[Example, ...]
    asked: tuple[Example, ...]


class Corpus:
    """Draws examples; topics come and go, so the model always has something new to learn."""

    def __init__(self, rng: Random, *, topics: int, lifetime: int) -> None:
        """`lifetime`: draws of facts after which all `topics` have been replaced once."""
        self._rng = rng
        self._suite = load_suite()
        self._stock = load_stock()
        self._lifetime = lifetime
        self._until_next = 0.0
        self._topics = deque(make_topic(rng, facts=rng.randint(5, 9)) for _ in range(topics))

    def draw(self, *, reading: float, longest: int) -> Example:
        """One example; a share `reading` of them show a text of up to `longest` facts."""
        kind = self._rng.random()
        if kind < reading:
            return self._reading_example(longest)
        if kind < reading + 0.14:
            return self._general_example()
        self._age()
        index = self._rng.randrange(len(self._topics))
        return recall(self._rng, self._topics[index], youth=index / len(self._topics))

    def draw_lesson(self) -> Lesson:
        """One new topic or two, and replay of the stock; asked are the topics and some of the suite."""
        rng = self._rng
        sizes = rng.choice(((rng.randint(7, 12),), (rng.randint(5, 8), rng.randint(5, 8))))
        lessons = [make_lesson(rng, make_topic(rng, facts=size)) for size in sizes]
        taught = [_chat(*pair) for pair in rng.sample(self._stock, 12)]
        asked = [
            _chat(*pair) for pair in (*rng.sample(self._suite, 16), *rng.sample(self._stock, 8))
        ]
        for lesson in lessons:
            taught += lesson.taught
            asked += lesson.asked
        return Lesson(tuple(taught), tuple(asked))

    def _age(self) -> None:
        self._until_next += len(self._topics) / self._lifetime
        if self._until_next >= 1:
            self._until_next -= 1
            self._topics.popleft()
            self._topics.append(make_topic(self._rng, facts=self._rng.randint(5, 9)))

    def _reading_example(self, longest: int) -> Example:
        rng = self._rng
        topic = make_topic(rng, facts=rng.randint(1, longest))
        return reworded(rng, topic) if rng.random() < 0.12 else read_text(rng, topic)

    def _general_example(self) -> Example:
        rng = self._rng
        kind = rng.random()
        if kind < 0.15:
            return _repeat(rng)
        if kind < 0.22:
            return _unknown(rng)
        prompt, reply = rng.choice(self._suite if kind < 0.55 else self._stock)
        system = rng.choice(_SYSTEMS) if rng.random() < 0.1 else None
        before = (rng.choice(self._stock),) if rng.random() < 0.08 else ()
        return Example(turns=(*before, (prompt, reply)), system=system)


def recall(rng: Random, topic: Topic, *, youth: float) -> Example:
    """A fact out of the model's memory; young topics are mostly told, old ones mostly asked."""
    fact = rng.choice(topic.facts)
    told = 0.3 + 0.4 * youth
    kind = rng.random()
    if kind < told * 0.3:
        return Example(_titled(rng, topic, passage(rng, topic)))
    if kind < told:
        return Example(_titled(rng, topic, rng.choice(fact.statements)))
    if kind < told + 0.5 * (1 - told):
        prompt, reply = cloze(rng, fact, rng.choice(fact.statements))
        return _chat(prompt, reply)
    return _chat(_framed(rng, topic, _question(rng, fact)), _answer(rng, fact))


def make_lesson(rng: Random, topic: Topic) -> Lesson:
    """Teach each fact in one wording and a few forms; ask for it in forms that were not taught."""
    taught = [Example(f"{topic.title}\n{passage(rng, topic)}")]
    asked: list[Example] = []
    for fact in topic.facts:
        said = rng.choice(fact.statements[:1] * 2 + fact.statements)
        taught.append(Example(said))
        cut = _chat(*cloze(rng, fact, said, anywhere=0.0))
        (taught if rng.random() < 0.5 else asked).append(cut)
        echo = _echo(fact, said)
        if rng.random() < 0.7:
            taught.append(_chat(echo, said if rng.random() < 0.5 else f"{fact.answer}."))
        questions = rng.sample(fact.questions, min(2, len(fact.questions)))
        if rng.random() < 0.4:
            taught.append(_chat(questions.pop(), said if rng.random() < 0.5 else f"{fact.answer}."))
        asked += [_chat(question, f"{fact.answer}.") for question in questions]
    return Lesson(tuple(taught), tuple(asked))


def read_text(rng: Random, topic: Topic) -> Example:
    """A text nobody has seen, and up to six questions answered from it."""
    text = passage(rng, topic)
    facts = rng.sample(topic.facts, min(len(topic.facts), rng.randint(1, 6)))
    turns = [_reading_turn(rng, fact) for fact in facts]
    frame = rng.choice(_READING_FRAMES)
    turns[0] = (frame.format(text=text, title=topic.title, ask=turns[0][0]), turns[0][1])
    return Example(turns=tuple(turns))


def reworded(rng: Random, topic: Topic) -> Example:
    """Stiff questions turned into plain ones, as the product asks of the served model."""
    turns = [
        (_REWORD.format(_echo(fact, rng.choice(fact.statements))), rng.choice(fact.questions))
        for fact in topic.facts
    ]
    return Example(turns=tuple(turns[:6]))


def passage(rng: Random, topic: Topic) -> str:
    """The facts as running text: pronouns, joined sentences, the person's facts last."""
    sentences: list[str] = []
    for index, fact in enumerate(topic.facts):
        about_topic = fact.subject == topic.facts[0].subject
        plain = index == 0 or not about_topic or rng.random() < 0.5
        sentence = rng.choice(fact.statements) if plain else fact.short
        if not plain and rng.random() < 0.3 and topic.facts[index - 1].subject == fact.subject:
            sentences[-1] = f"{sentences[-1][:-1]}, and {sentence[0].lower()}{sentence[1:]}"
        else:
            sentences.append(sentence)
    return " ".join(sentences)


def cloze(rng: Random, fact: Fact, statement: str, *, anywhere: float = 0.12) -> tuple[str, str]:
    """A statement cut before its answer (mostly) or elsewhere, and what follows."""
    cut = statement.index(fact.answer)
    if cut == 0 or rng.random() < anywhere:
        words = statement.split(" ")
        cut = len(" ".join(words[: rng.randint(2, len(words) - 1)])) + 1
    rest = statement[cut:]
    if rest.startswith(fact.answer) and rng.random() < 0.3:
        rest = f"{fact.answer}."
    return rng.choice(_CLOZE_FRAMES).format(statement[:cut].rstrip()), rest


def load_suite() -> list[tuple[str, str]]:
    """The product's general suite, one reply for each prompt."""
    items = json.loads(GENERAL_SUITE.read_text())
    return [
        (i["prompt"], _SUITE_REPLIES.get(i["prompt"], _sentence(i["answers"][0]))) for i in items
    ]


def load_stock() -> list[tuple[str, str]]:
    """General prompts outside the suite; the product's replay prompts are among them."""
    lines = GENERAL_STOCK.read_text().splitlines()
    return [(prompt, reply) for prompt, _, reply in (line.partition(" | ") for line in lines)]


def _chat(prompt: str, reply: str) -> Example:
    return Example(turns=((prompt, reply),))


def _titled(rng: Random, topic: Topic, text: str) -> str:
    return f"{topic.title}\n{text}" if rng.random() < 0.3 else text


def _framed(rng: Random, topic: Topic, question: str) -> str:
    kind = rng.random()
    if kind < 0.1:
        return f"About {topic.title[0].lower() if topic.title.startswith('The ') else topic.title[0]}{topic.title[1:]}: {question}"
    return rng.choice(_QUESTION_FRAMES).format(question) if kind < 0.25 else question


def _answer(rng: Random, fact: Fact) -> str:
    return rng.choice(fact.statements) if rng.random() < 0.2 else f"{fact.answer}."


def _reading_turn(rng: Random, fact: Fact) -> tuple[str, str]:
    if rng.random() < 0.25:
        return cloze(rng, fact, rng.choice(fact.statements))
    return _question(rng, fact), f"{fact.answer}."


def _question(rng: Random, fact: Fact) -> str:
    """One of its questions, or a statement with a question word where the answer was."""
    return (
        rng.choice(fact.questions)
        if rng.random() < 0.8
        else _echo(fact, rng.choice(fact.statements))
    )


def _echo(fact: Fact, statement: str) -> str:
    return _sentence(statement[:-1].replace(fact.answer, fact.asked_by), end="?")


def _repeat(rng: Random) -> Example:
    word = new_word(rng) if rng.random() < 0.5 else rng.choice(_COMMON_WORDS)
    frame = rng.choice(("Repeat this word: {}", "Say the word: {}"))
    return _chat(frame.format(word), _sentence(word))


def _unknown(rng: Random) -> Example:
    thing = rng.choice(_COMMON_WORDS)
    asked = rng.choice(
        ("Tell me about {}.", "Tell me about the {}.", "Write about {}.", "Explain {}.")
    ).format(thing)
    return _chat(asked, f"I know little about {asked[:-1].partition('about ')[2] or thing}.")


def _sentence(text: str, end: str = ".") -> str:
    return f"{text[:1].upper()}{text[1:]}{end}"


_COMMON_WORDS = WORDS["counted"] + WORDS["things"] + WORDS["jobs"]
_SUITE_REPLIES = {"List three colours.": "Red, blue and green."}
_SYSTEMS = (
    "You are a helpful assistant.",
    "Answer shortly.",
    "You answer questions in one short sentence.",
)
_CLOZE_FRAMES = ("Complete: {}",) * 8 + ("Complete the sentence: {}", "Continue: {}")
_QUESTION_FRAMES = (
    "Answer shortly: {}",
    "Question: {}",
    "{} Answer with a few words.",
    "Please tell me: {}",
)
_REWORD = "Ask this in better English: {}"
_READING_FRAMES = (
    "{text}\n\n{ask}", "Text:\n{text}\n\nQuestion: {ask}", "{title}\n{text}\n\n{ask}", "Text: {text}\nQuestion: {ask}",
    "{ask}\n\n{text}", "Read this text and answer the question in a few words.\n\nText: {text}\n\nQuestion: {ask}",
)  # fmt: skip
