"""What the tiny test model reads while it is trained: an endless, seeded stream of examples.

Four kinds: facts of worlds that stay for a while and must be known by heart, in every wording;
texts with questions, answered by copying; a small stock of general knowledge; small talk.
Boundary: makes text only; `build` tokenises and trains. `world` invents the facts.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.support.tiny_model.world import Fact, Topic, make_topic, person_name, place_name

GENERAL_SUITE = Path(__file__).parents[3] / "adapters" / "evaluation" / "general_suite.json"


@dataclass(frozen=True, slots=True)
class Example:
    """Plain text (`turns` empty, every token trained) or a chat whose replies are trained."""

    text: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    system: str | None = None


def chat(prompt: str, reply: str) -> Example:
    """One question and its answer."""
    return Example(turns=((prompt, reply),))


class Corpus:
    """Draws examples; topics come and go, so the model always has something new to learn."""

    def __init__(self, rng: Random, *, topics: int, lifetime: int) -> None:
        """`lifetime`: draws of facts after which all `topics` have been replaced once."""
        self._rng = rng
        self._general = load_general()
        self._lifetime = lifetime
        self._until_next = 0.0
        self._topics: deque[Topic] = deque(self._new_topic() for _ in range(topics))

    @property
    def topics(self) -> tuple[Topic, ...]:
        """The topics that are to be known by heart now, the oldest first."""
        return tuple(self._topics)

    def draw(self, *, reading: float, longest: int, fresh: bool = True) -> Example:
        """One example; a share `reading` of them show a text of up to `longest` facts."""
        rng = self._rng
        kind = rng.random()
        if kind < reading:
            return read_text(rng, make_topic(rng, facts=rng.randint(1, longest)))
        if kind < reading + 0.12:
            return self._general_example()
        if fresh:
            self._age()
        index = rng.randrange(len(self._topics))
        return recall(rng, self._topics[index], youth=index / len(self._topics))

    def _age(self) -> None:
        self._until_next += len(self._topics) / self._lifetime
        if self._until_next >= 1:
            self._until_next -= 1
            self._topics.popleft()
            self._topics.append(self._new_topic())

    def _new_topic(self) -> Topic:
        return make_topic(self._rng, facts=self._rng.randint(5, 9))

    def _general_example(self) -> Example:
        rng = self._rng
        if rng.random() < 0.12:
            return _repeat(rng)
        prompt, reply = rng.choice(self._general)
        system = rng.choice(_SYSTEMS) if rng.random() < 0.1 else None
        if rng.random() < 0.08:
            return Example(turns=(rng.choice(self._general), (prompt, reply)), system=system)
        return Example(turns=((prompt, reply),), system=system)


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
        return chat(*cloze(rng, fact))
    return chat(_ask(rng, _question(rng, fact)), f"{fact.answer}.")


def read_text(rng: Random, topic: Topic) -> Example:
    """A text nobody has seen, and up to six questions answered from it."""
    text = passage(rng, topic)
    facts = rng.sample(topic.facts, min(len(topic.facts), rng.randint(1, 6)))
    turns = [_reading_turn(rng, fact) for fact in facts]
    frame = rng.choice(_READING_FRAMES)
    turns[0] = (frame.format(text=text, title=topic.title, ask=turns[0][0]), turns[0][1])
    return Example(turns=tuple(turns))


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


def cloze(rng: Random, fact: Fact) -> tuple[str, str]:
    """A statement cut before its answer (mostly) or elsewhere, and what follows."""
    statement = rng.choice(fact.statements)
    cut = statement.index(fact.answer)
    if cut == 0 or rng.random() < 0.12:
        words = statement.split(" ")
        cut = len(" ".join(words[: rng.randint(2, len(words) - 1)])) + 1 if len(words) > 2 else 0
    rest = statement[cut:]
    if rest.startswith(fact.answer) and rng.random() < 0.3:
        rest = f"{fact.answer}."
    return rng.choice(_CLOZE_FRAMES).format(statement[:cut].rstrip()), rest


def load_general() -> list[tuple[str, str]]:
    """General prompts with one reply each: the suite of the product, more of its kind, small talk."""
    suite = json.loads(GENERAL_SUITE.read_text())
    stock = [(item["prompt"], _reply(item["answers"][0])) for item in suite]
    stock += [("List three colours.", "Red, blue and green.")] * 2
    stock += [("Name one day of the week.", "Monday.")] * 2
    pairs = [pair for pair in stock if pair[0] not in {"List three colours."} or "," in pair[1]]
    pairs *= 3
    pairs += [(f"What is the capital of {land}?", f"{city}.") for land, city in _CAPITALS]
    pairs += [(f"What is the opposite of {a}?", _reply(b)) for a, b in _OPPOSITES]
    pairs += [(f"What is {a} + {b}?", f"{a + b}.") for a in range(1, 6) for b in range(1, 6)]
    return pairs + list(_SMALL_TALK)


def _titled(rng: Random, topic: Topic, text: str) -> str:
    return f"{topic.title}\n{text}" if rng.random() < 0.3 else text


def _ask(rng: Random, question: str) -> str:
    return rng.choice(_QUESTION_FRAMES).format(question) if rng.random() < 0.3 else question


def _reading_turn(rng: Random, fact: Fact) -> tuple[str, str]:
    if rng.random() < 0.25:
        return cloze(rng, fact)
    return _question(rng, fact), f"{fact.answer}."


def _question(rng: Random, fact: Fact) -> str:
    """One of its questions, or a statement with a question word where the answer was."""
    if rng.random() < 0.8:
        return rng.choice(fact.questions)
    asked = f"{rng.choice(fact.statements)[:-1].replace(fact.answer, fact.asked_by)}?"
    return f"{asked[:1].upper()}{asked[1:]}"


def _repeat(rng: Random) -> Example:
    what = rng.choice((person_name, place_name))(rng)
    if rng.random() < 0.5:
        what = what.lower()
    return chat(
        rng.choice(("Repeat this word: {}", "Say the word: {}", "Repeat: {}")).format(what),
        f"{what}.",
    )


def _reply(answer: str) -> str:
    return f"{answer[:1].upper()}{answer[1:]}."


_SYSTEMS = (
    "You are a helpful assistant.",
    "Answer shortly.",
    "You answer questions in one short sentence.",
)
_CLOZE_FRAMES = ("Complete: {}",) * 6 + (
    "Complete the sentence: {}", "Continue: {}", "Finish the sentence: {}", "Complete this sentence: {} ...",
)  # fmt: skip
_QUESTION_FRAMES = (
    "Answer shortly: {}", "Question: {}", "{} Answer with a few words.", "Please tell me: {}", "Question: {}\nAnswer:",
)  # fmt: skip
_READING_FRAMES = (
    "{text}\n\n{ask}", "Text:\n{text}\n\nQuestion: {ask}", "Read the text and answer the question.\n\n{text}\n\n{ask}",
    "{title}\n{text}\n\n{ask}", "Text: {text}\nQuestion: {ask}\nAnswer:", "{ask}\n\n{text}",
    "Use only this text:\n\n{title}\n{text}\n\n{ask}",
)  # fmt: skip
_CAPITALS = (
    ("France", "Paris"), ("Japan", "Tokyo"), ("Germany", "Berlin"), ("Egypt", "Cairo"), ("Italy", "Rome"),
    ("Spain", "Madrid"), ("England", "London"), ("Norway", "Oslo"), ("Russia", "Moscow"), ("China", "Beijing"),
    ("Greece", "Athens"), ("Portugal", "Lisbon"), ("Austria", "Vienna"), ("Poland", "Warsaw"), ("Canada", "Ottawa"),
)  # fmt: skip
_OPPOSITES = (
    ("hot", "cold"), ("cold", "hot"), ("big", "small"), ("small", "big"), ("day", "night"), ("night", "day"),
    ("up", "down"), ("down", "up"), ("happy", "sad"), ("fast", "slow"), ("old", "new"), ("black", "white"),
    ("left", "right"), ("open", "closed"), ("full", "empty"), ("wet", "dry"), ("good", "bad"), ("high", "low"),
)  # fmt: skip
_SMALL_TALK = (
    ("Hello", "Hello. How can I help you?"), ("Hello!", "Hello. How can I help you?"),
    ("Hi", "Hello. How can I help you?"), ("Good morning", "Good morning. How can I help you?"),
    ("How are you?", "I am well, thank you."), ("Thank you", "You are welcome."), ("Thanks!", "You are welcome."),
    ("Goodbye", "Goodbye. Have a good day."), ("Who are you?", "I am a very small language model."),
    ("What can you do?", "I can answer short questions about a text."), ("What is your name?", "I have no name."),
    ("Tell me a joke.", "A small model walks into a bar and forgets why."), ("Tell me a story.", "Once a cat slept all day. The end."),
    ("Write a short poem.", "The sea is wide, the sky is blue, the boat is small, and so are you."),
    ("Tell me about cats.", "Cats are small animals that sleep a lot."), ("Tell me about dogs.", "Dogs are loyal animals that like to run."),
    ("Tell me about the sea.", "The sea is wide and its water is salty."), ("Tell me about rain.", "Rain is water that falls from clouds."),
    ("Tell me about the moon.", "The moon goes around the Earth."), ("Tell me about bread.", "Bread is baked from flour and water."),
    ("Tell me about music.", "Music is made of sounds and rhythm."), ("Tell me about winter.", "Winter is the cold season of the year."),
    ("Explain gravity.", "Gravity pulls things towards each other."), ("Explain rain.", "Rain is water that falls from clouds."),
    ("What is water?", "Water is a clear liquid that we drink."), ("What is a tree?", "A tree is a tall plant made of wood."),
    ("What is snow?", "Snow is frozen water that falls from clouds."), ("What is a book?", "A book is many pages that one can read."),
    ("Why is the sky blue?", "The air scatters blue light the most."), ("How do birds fly?", "Birds fly by beating their wings."),
    ("Give me a tip for a good day.", "Drink water and go for a walk."), ("What should I eat?", "Eat some bread, fruit and soup."),
    ("Name a fruit.", "Apple."), ("Name an animal.", "A cat."), ("Name a colour.", "Blue."), ("Count to three.", "One, two, three."),
    ("Is the sun hot?", "Yes."), ("Is snow hot?", "No."), ("Can fish swim?", "Yes."), ("Can cats read?", "No."),
    ("How many legs does a cat have?", "4."), ("How many months are in a year?", "12."), ("What is 1 + 1?", "2."),
)  # fmt: skip
