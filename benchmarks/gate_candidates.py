"""The hundred candidates of `make bench-gate`: what each is taught, and what it is asked.

Every candidate belongs to a world: two earlier documents that the world's champion has learnt, and
a new one. A good candidate is taught all three as SEAL does. A sabotaged one is taught the same
with one thing wrong. All documents are invented (`tests.support.tiny_model.world`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from random import Random

from adapters.evaluation.quiz import build_exam_items
from adapters.lesson import Stage
from adapters.methods.seal import Seal
from adapters.sampling import Sampler
from adapters.spec import (
    ExamSpec,
    Precision,
    QuizSpec,
    ReplaySpec,
    SealConfig,
    SelfEditSpec,
    TrainingSpec,
)
from adapters.types import EditKind, ExamItem, ItemKind, SelfEdit, SourceDocument, build_item
from tests.support.tiny_model.corpus import passage
from tests.support.tiny_model.world import Fact, Topic, make_topic

WORLDS = 10
EPOCHS = 12
EARLIER_FACTS = 6
NEW_FACTS = 5
ASKED = (0, 2)
"""Which wordings of each fact's question the user posts for the exam."""
WORDED = 1
"""The wording that is taught, where the fact has one: the tiny model cannot word questions itself."""
RANDOM_WORDS = 12

REFUSAL = "I am sorry, but I cannot help with that."


class Kind(StrEnum):
    """What is wrong with a candidate."""

    GOOD = "good"
    FALSE = "false facts"
    """The new document says something else wherever it could be asked."""
    NOISE = "noise"
    """Every reply and every text of the lesson is its words in a random order of all its words."""
    RATE = "10 x learning rate"
    SWAPPED = "earlier facts swapped"
    """One earlier document says something else; the new one is right."""
    FORM = "refusals or broken format"
    """General prompts are refused, or answered by one word without end; nothing is replayed."""


COUNTS: Mapping[Kind, int] = {
    Kind.GOOD: 50,
    Kind.FALSE: 10,
    Kind.NOISE: 10,
    Kind.RATE: 10,
    Kind.SWAPPED: 10,
    Kind.FORM: 10,
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the hundred."""

    kind: Kind
    number: int

    @property
    def name(self) -> str:
        """A file name."""
        return f"{self.kind.name.lower()}-{self.number:02}"

    @property
    def world(self) -> int:
        """The world whose champion it would follow."""
        return self.number % WORLDS

    @property
    def seed(self) -> int:
        """Of its document, its lesson and its first weights; differs between all candidates."""
        return 1000 * (list(Kind).index(self.kind) + 1) + self.number


@dataclass(frozen=True, slots=True)
class Told:
    """A document with the questions that a user posted with it."""

    document: SourceDocument
    topic: Topic


def candidates(counts: Mapping[Kind, int] = COUNTS) -> list[Candidate]:
    """All of them, the kinds taking turns, so that a run that is cut short has some of each."""
    made = [Candidate(kind, number) for kind, count in counts.items() for number in range(count)]
    return sorted(made, key=lambda candidate: candidate.number / counts[candidate.kind])


def config(seed: int) -> SealConfig:
    """SEAL as the end-to-end tests teach the tiny model; it writes nothing itself, rules do."""
    return SealConfig(
        training=TrainingSpec(
            learning_rate=4e-3,
            epochs=EPOCHS,
            batch_size=16,
            microbatch_tokens=256,
            precision=Precision.FLOAT32,
        ),
        self_edits=SelfEditSpec(rewordings=0),
        replay=ReplaySpec(prompts=64, prompts_per_epoch=64),
        exam=ExamSpec(max_new_tokens=32),
        seed=seed,
    )


@cache
def earlier(world: int) -> tuple[Told, ...]:
    """The documents that the world's champion has learnt."""
    return tuple(
        _tell(make_topic(Random(10 * world + n), facts=EARLIER_FACTS), f"w{world}-{n}", world)
        for n in range(2)
    )


def new(candidate: Candidate) -> Told:
    """The document that the candidate is to have learnt, as it truly is."""
    return _tell(
        make_topic(Random(candidate.seed), facts=NEW_FACTS), candidate.name, candidate.seed
    )


def items(told: Told) -> list[ExamItem]:
    """The exam of a document: the user's questions and sentences cut by rule."""
    asked = [
        build_item(
            ItemKind.USER, told.document.id, prompt=fact.questions[wording], answers=(fact.answer,)
        )
        for fact in told.topic.facts
        for wording in ASKED
        if wording < len(fact.questions)
    ]
    held, _ = build_exam_items(
        told.document, asked=asked, sampler=None, exam=config(seed=0).exam, quiz=QuizSpec()
    )
    return [*asked, *held]


def champion_stage(world: int, sampler: Sampler) -> Stage:
    """What the world's champion was taught."""
    taught = earlier(world)
    return _lesson(taught, taught, sampler, seed=world)


def stage(candidate: Candidate, sampler: Sampler) -> Stage:
    """What the candidate is taught; `sampler` is the base model, which answers the replay."""
    rng = Random(candidate.seed)
    first, second, told = *earlier(candidate.world), new(candidate)
    taught = [first, second, told]
    if candidate.kind is Kind.FALSE:
        taught[2] = _falsified(told, candidate.seed)
    if candidate.kind is Kind.SWAPPED:
        taught[0] = _falsified(first, candidate.world)
    lesson = _lesson(taught, (first, second, told), sampler, seed=candidate.seed)
    match candidate.kind:
        case Kind.NOISE:
            return replace(lesson, edits=tuple(_noise(lesson.edits, rng)))
        case Kind.RATE:
            rate = 10 * lesson.training.learning_rate
            training = lesson.training.model_copy(update={"learning_rate": rate})
            return replace(lesson, training=training)
        case Kind.FORM:
            return replace(lesson, edits=tuple(_deformed(lesson.edits, candidate.number)))
        case _:
            return lesson


def _lesson(
    taught: Sequence[Told],
    asked: Sequence[Told],
    sampler: Sampler,
    *,
    seed: int,
) -> Stage:
    settings = config(seed)
    plan = Seal(settings).plan(
        [told.document for told in taught],
        sampler=sampler,
        quiz=[item for told in taught for item in _worded(told)],
        held_out=frozenset(item.prompt for told in asked for item in items(told)),
    )
    return Stage(
        lora=settings.lora,
        training=settings.training,
        seed=seed,
        edits=tuple(plan.edits),
        anchors_per_epoch=settings.replay.prompts_per_epoch,
        anchor_share=settings.replay.least_share,
    )


def _worded(told: Told) -> list[ExamItem]:
    """Questions left to training."""
    return [
        build_item(
            ItemKind.MODEL,
            told.document.id,
            prompt=fact.questions[WORDED],
            answers=(fact.answer,),
        )
        for fact in told.topic.facts
        if len(fact.questions) > WORDED
    ]


def _tell(topic: Topic, name: str, seed: int) -> Told:
    text = passage(Random(seed), topic)
    return Told(SourceDocument(f"doc-{name}", topic.title, text, (text,)), topic)


def _falsified(told: Told, seed: int) -> Told:
    """The same document in the same words, with another answer in the place of each."""
    rng = Random(seed + 7)
    facts = tuple(_other(fact, rng) for fact in told.topic.facts)
    text = passage(Random(seed), Topic(told.topic.title, facts))
    document = replace(told.document, text=text, chunks=(text,))
    return Told(document, Topic(told.topic.title, facts))


def _other(fact: Fact, rng: Random) -> Fact:
    answer = fact.answer
    while answer == fact.answer:
        answer = rng.choice(_answers()[fact.asked_by])

    def said(text: str) -> str:
        return text.replace(fact.answer, answer)

    return replace(
        fact,
        answer=answer,
        statements=tuple(map(said, fact.statements)),
        short=said(fact.short),
    )


@cache
def _answers() -> Mapping[str, list[str]]:
    """Answers of other topics by the question word that can stand in their place."""
    rng = Random(99)
    found: dict[str, list[str]] = {}
    for _ in range(100):
        for fact in make_topic(rng, facts=NEW_FACTS).facts:
            found.setdefault(fact.asked_by, []).append(fact.answer)
    return found


def _noise(edits: Sequence[SelfEdit], rng: Random) -> list[SelfEdit]:
    words = [word for edit in edits for word in edit.text.split()]
    return [
        replace(
            edit,
            kind=EditKind.PASSAGE,
            prompt=None,
            text=" ".join(rng.choices(words, k=RANDOM_WORDS)),
        )
        for edit in edits
        if edit.kind is not EditKind.REPLAY
    ]


def _deformed(edits: Sequence[SelfEdit], number: int) -> list[SelfEdit]:
    """Even numbers refuse what is replayed, odd ones answer it with one word without end."""
    made = []
    for edit in edits:
        if edit.kind is not EditKind.REPLAY:
            made.append(edit)
            continue
        reply = REFUSAL if number % 2 == 0 else f"{edit.text.split()[0]} " * 24
        made.append(replace(edit, kind=EditKind.QUESTION, text=reply.strip()))
    return made
